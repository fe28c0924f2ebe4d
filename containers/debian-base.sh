#!/bin/sh
# Creates a base image from Debian packages, if a Debian mirror is reachable but no image registry.
#
#   sudo containers/debian-base.sh && sudo make images BASE=localhost/hedgerow-base
#   sudo containers/debian-base.sh arm64        # localhost/hedgerow-base-arm64; packages are unpacked, not configured
#
# Takes about a minute. RELEASE is the Debian release (bookworm) and determines Python's version; MIRROR is the Debian
# mirror; ENGINE as in build.sh.
set -eu
cd "$(dirname "$0")/.."
engine=$(sh containers/engine.sh)
command -v debootstrap >/dev/null || {
    echo "error: debootstrap is not installed" >&2
    echo "  → Install it: \`apt-get install debootstrap\`." >&2
    exit 1
}
own=$(dpkg --print-architecture)
arch=${1:-$own}
tag=localhost/hedgerow-base
[ "$arch" = "$own" ] || tag=$tag-$arch
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
root=$folder/root

echo "Fetching Debian ${RELEASE:-bookworm} for $arch…"
foreign=
[ "$arch" = "$own" ] || foreign=--foreign
# shellcheck disable=SC2086 # empty, or one word
debootstrap $foreign --variant=minbase --arch="$arch" --include=python3-venv,ca-certificates,tzdata \
    "${RELEASE:-bookworm}" "$root" ${MIRROR:+"$MIRROR"} >"$folder/log" 2>&1 || {
    tail -n 20 "$folder/log" >&2
    exit 1
}
if [ -n "$foreign" ]; then
    # Only programs of that architecture could configure the packages. Do the parts that an image needs:
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
    (cd "$root/usr/share/ca-certificates" && find . -name '*.crt' -exec cat {} +) >"$root/etc/ssl/certs/ca-certificates.crt"
    cp -n "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
    cp -n "$root/usr/share/base-passwd/group.master" "$root/etc/group"
fi
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root/debootstrap"
find "$root/dev" "$root/proc" "$root/sys" -mindepth 1 -delete

echo "Importing it as $tag…"
tar --create --file "$folder/base.tar" --directory "$root" .
case $engine in
    podman) podman import --quiet --arch "$arch" "$folder/base.tar" "$tag" ;;
    docker) docker import --platform "linux/$arch" "$folder/base.tar" "$tag" ;;
    buildah)
        container=$(buildah from --arch "$arch" scratch)
        buildah add --quiet "$container" "$folder/base.tar" /
        buildah config --arch "$arch" "$container"
        buildah commit --quiet --rm "$container" "$tag"
        ;;
esac
