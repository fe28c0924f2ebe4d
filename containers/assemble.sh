#!/bin/sh
# What the Containerfile runs, step by step, to assemble an image in /image. It runs nothing that lies there.
set -eu
app=/image/opt/hedgerow
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# The locked packages for an architecture (its wheels, and no source that would have to be built), less what no node uses.
packages() {
    set=$1
    index=${3:-}
    case $2 in
        amd64) machine=x86_64 ;;
        arm64) machine=aarch64 ;;
        *) echo "error: no packages for $2; there are: amd64, arm64" >&2; exit 1 ;;
    esac
    /tools/bin/uv pip install --quiet --no-cache --system-certs ${index:+--index-url "$index"} \
        --target "$app/lib" --python /tools/bin/python --python-version "$python" --python-platform "$machine-manylinux_2_36" \
        --require-hashes --no-deps --only-binary :all: -r "containers/requirements/$set.lock"
    cd "$app/lib"
    rm -rf bin
    find . -depth -type d \( -name tests -o -name __pycache__ -o -name include -o -name cmake \) -exec rm -rf {} +
    find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' -o -name '*.h' \) -delete
    # A second copy of ONNX Runtime, for programs in C; and tools that make and convert models, which come to a node ready.
    rm -f onnxruntime/capi/libonnxruntime.so.*
    rm -rf onnxruntime/tools onnxruntime/transformers onnxruntime/quantization onnxruntime/datasets
    rm -rf numpy/f2py openvino/tools
    # OpenVINO reads ONNX, its own format and TensorFlow Lite here; its other readers go, and its interface for C.
    for reader in tensorflow pytorch paddle jax gguf; do rm -f openvino/libs/libopenvino_${reader}_frontend.so*; done
    rm -f openvino/libs/libopenvino_c.so*
}

# The base without what installs and builds, and without what nobody reads in a container. Copyright notices stay, and the
# list of packages, which scanners look for.
system() {
    cd /image
    rm -rf usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/perl* usr/share/python-wheels \
        var/cache/* var/lib/apt var/lib/dpkg/info var/log/* root/.[!.]* tmp/* src tools
    find usr/share/doc -type f ! -name copyright -delete
    find usr/share/doc -depth -type d -empty -delete
    rm -rf etc/apt usr/lib/apt usr/lib/*/perl* usr/lib/dpkg usr/share/dpkg usr/lib/*/libapt-*
    for tool in apt apt-cache apt-cdrom apt-config apt-get apt-key apt-mark dpkg dpkg-deb dpkg-divert dpkg-maintscript-helper \
        dpkg-query dpkg-realpath dpkg-split dpkg-statoverride dpkg-trigger perl perl5* pip* pydoc* idle* 2to3* wheel; do
        rm -f usr/bin/$tool usr/local/bin/$tool
    done
    for library in usr/lib/python3* usr/local/lib/python3*; do
        [ -d "$library" ] || continue
        (cd "$library" && rm -rf ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo venv distutils/command/*.exe \
            config-3* dist-packages/pip* dist-packages/setuptools* site-packages/* turtle.py __phello__)
    done
    rm -rf usr/local/lib/python3*/site-packages/* usr/local/include
    # Nobody becomes somebody else in there.
    find . -xdev -type f -perm /6000 -exec chmod a-s {} +
    echo 'hedgerow:x:10001:10001::/tmp:/usr/sbin/nologin' >>etc/passwd
    echo 'hedgerow:x:10001:' >>etc/group
    mkdir -p opt/hedgerow tmp
    chmod 1777 tmp
    compiled usr/lib/python3* usr/local/lib/python3*
}

# Hedgerow itself, and for a node the stages of plugins/.
project() {
    plugins=
    [ "$1" = region ] || plugins="./plugins/vision ./plugins/audio ./plugins/signal"
    /tools/bin/uv pip install --quiet --no-cache --target "$app/lib" --python /tools/bin/python --no-deps --no-build-isolation \
        . $plugins
    rm -rf "$app/lib/bin"
    mkdir -p "$app/bin"
    install -m 755 containers/probe.py "$app/bin/probe"
    printf '%s\n' '#!/usr/bin/env python3' 'from hedgerow.__main__ import main' 'main()' >"$app/bin/hedgerow"
    chmod 755 "$app/bin/hedgerow"
    cd /image
    compiled opt/hedgerow/lib
    chmod -R go-w,a+rX opt/hedgerow
}

# The root is read-only, so Python could not keep what it compiled; it would compile everything at each start.
compiled() {
    for folder in "$@"; do
        [ -d "$folder" ] || continue
        find "$folder" -name __pycache__ -prune -exec rm -rf {} +
        /tools/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /image -p / "$folder" || true
    done
}

"$@"
