#!/bin/sh
# Builds the images: `make images`, or `containers/build.sh onnx region` for some of them.
#
#   ENGINE      podman, docker or buildah; else the first of them that works here
#   ARCH        amd64 or arm64; else this machine's. Nothing of another architecture is run, so there is nothing to emulate
#   BASE        the base image, with Python 3.11 or later; see containers/Containerfile
#   BUILD_BASE  the same for this machine's architecture, where BASE is not a multi-architecture image
#   INDEX       where packages come from, if not from PyPI
#   OPTIONS     more options for the engine
#
# Behind a proxy with an authority of its own, podman and buildah use what SSL_CERT_FILE names.
set -eu
cd "$(dirname "$0")/.."
engine=$(sh containers/engine.sh)
case $(uname -m) in
    x86_64) own=amd64 ;;
    aarch64 | arm64) own=arm64 ;;
    *) own=$(uname -m) ;;
esac
arch=${ARCH:-$own}
suffix=
[ "$arch" = "$own" ] || suffix=-$arch
[ $# -gt 0 ] || set -- onnx openvino region
trust=
if [ "$engine" != docker ] && [ -f "${SSL_CERT_FILE:-}" ]; then
    trust="--volume $SSL_CERT_FILE:/etc/ssl/certs/ca-certificates.crt:ro"
fi
number=0
for set in "$@"; do
    number=$((number + 1))
    target=node
    tags="-t localhost/hedgerow:$set$suffix"
    case $set in
        onnx) ;;
        openvino) tags="$tags -t localhost/hedgerow:latest$suffix" ;;
        region)
            target=region
            tags="-t localhost/hedgerow-region:latest$suffix"
            ;;
        *)
            echo "error: no image is called $set" >&2
            echo "  → There are: onnx, openvino, region." >&2
            exit 2
            ;;
    esac
    echo "[$number/$#] $set for $arch, with $engine…"
    case $engine in
        docker) how="build" ;;
        podman) how="build --format docker --layers" ;; # in OCI's own format there is no health check
        buildah) how="bud --format docker --layers" ;;
    esac
    # shellcheck disable=SC2086 # words on purpose
    "$engine" $how --platform "linux/$arch" -f containers/Containerfile --target "$target" \
        --build-arg SET="$set" --build-arg TARGETARCH="$arch" --build-arg BUILDPLATFORM="linux/$own" \
        ${BASE:+--build-arg BASE="$BASE"} ${BUILD_BASE:+--build-arg BUILD_BASE="$BUILD_BASE"} \
        ${INDEX:+--build-arg INDEX="$INDEX"} $trust ${OPTIONS:-} $tags .
done
