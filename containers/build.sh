#!/bin/sh
# Builds the images: `make images`, or `containers/build.sh onnx region` for some of them.
#
#   ENGINE      podman, docker or buildah; default: the first that works
#   ARCH        amd64 or arm64; default: this machine's. No emulation is needed, because no program of the image is run
#   BASE        base image, with Python 3.11 or later; see containers/Containerfile
#   BUILD_BASE  the same for this machine's architecture, if BASE is not a multi-architecture image
#   INDEX       package index, if not PyPI
#   OPTIONS     further options for the engine
#
# Behind a proxy with its own certificate authority, podman and buildah use the file that SSL_CERT_FILE names.
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
case ${BASE:-tag} in
    *@sha256:*) ;;
    *)
        echo "warning: the base image ${BASE:-of containers/Containerfile} is named by a tag, which can be given to another image" >&2
        echo "  → Build with BASE=NAME@sha256:DIGEST, as \`$engine image inspect\` prints it after a pull." >&2
        ;;
esac
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
            echo "error: unknown image $set" >&2
            echo "  → Use onnx, openvino or region." >&2
            exit 2
            ;;
    esac
    echo "[$number/$#] $set for $arch, with $engine…"
    case $engine in
        docker) how="build" ;;
        podman) how="build --format docker --layers" ;; # the OCI format has no health check
        buildah) how="bud --format docker --layers" ;;
    esac
    # shellcheck disable=SC2086 # split into words on purpose
    "$engine" $how --platform "linux/$arch" -f containers/Containerfile --target "$target" \
        --build-arg SET="$set" --build-arg TARGETARCH="$arch" --build-arg BUILDPLATFORM="linux/$own" \
        ${BASE:+--build-arg BASE="$BASE"} ${BUILD_BASE:+--build-arg BUILD_BASE="$BUILD_BASE"} \
        ${INDEX:+--build-arg INDEX="$INDEX"} $trust ${OPTIONS:-} $tags .
    tag=${tags##* }
    case $engine in
        docker) format='{{if .RepoDigests}}{{index .RepoDigests 0}}{{end}}' ;;
        *) format='{{.Digest}}' ;;
    esac
    digest=$("$engine" image inspect --format "$format" "$tag" 2>/dev/null || true)
    case $digest in
        *sha256:*) echo "$tag: ${tag%:*}@${digest##*@}" ;; # a registry may compress it again: after a push, use the digest there
        *) echo "$tag: no digest until it is pushed" ;;
    esac
done
