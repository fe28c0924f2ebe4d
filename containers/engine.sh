#!/bin/sh
# Says which of podman, docker and buildah works here: the first of them, or the one that ENGINE names.
set -eu
for engine in ${ENGINE:-podman docker buildah}; do
    command -v "$engine" >/dev/null || continue
    # A docker command alone builds nothing: its daemon must answer.
    if "$engine" info >/dev/null 2>&1; then
        echo "$engine"
        exit
    fi
    silent="${silent:-} $engine"
done
if [ -n "${silent:-}" ]; then
    echo "error: installed, but not working here:$silent" >&2
    echo "  → Run \`${silent##* } info\`: it says why. Is the daemon running, and may you use it?" >&2
else
    echo "error: images are built with podman, docker or buildah, and ${ENGINE:-none of them} is installed" >&2
    echo "  → Install one: \`apt-get install podman\`." >&2
fi
exit 1
