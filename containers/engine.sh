#!/bin/sh
# Prints the first working engine of podman, docker and buildah, or the one that ENGINE names.
set -eu
for engine in ${ENGINE:-podman docker buildah}; do
    command -v "$engine" >/dev/null || continue
    # The docker command is not enough: its daemon must be running.
    if "$engine" info >/dev/null 2>&1; then
        echo "$engine"
        exit
    fi
    broken="${broken:-} $engine"
done
if [ -n "${broken:-}" ]; then
    echo "error: installed but not working:$broken" >&2
    echo "  → Run \`${broken##* } info\` for the reason. Check that the daemon is running and that you may use it." >&2
elif [ -n "${ENGINE:-}" ]; then
    echo "error: $ENGINE is not installed" >&2
    echo "  → Install one: \`apt-get install podman\`." >&2
else
    echo "error: images are built with podman, docker or buildah, but none of them is installed" >&2
    echo "  → Install one: \`apt-get install podman\`." >&2
fi
exit 1
