#!/bin/sh
# The steps that the Containerfile runs to assemble an image in /image. They run no program from /image.
set -eu
app=/image/opt/hedgerow
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Install the locked packages for an architecture, from wheels only, and remove parts that nodes do not use.
packages() {
    set=$1
    index=${3:-}
    case $2 in
        amd64) machine=x86_64 ;;
        arm64) machine=aarch64 ;;
        *) echo "error: unknown architecture $2; use amd64 or arm64" >&2; exit 1 ;;
    esac
    /tools/bin/uv pip install --quiet --no-cache --system-certs ${index:+--index-url "$index"} \
        --target "$app/lib" --python /tools/bin/python --python-version "$python" --python-platform "$machine-manylinux_2_36" \
        --require-hashes --no-deps --only-binary :all: -r "containers/requirements/$set.lock"
    cd "$app/lib"
    rm -rf bin
    find . -depth -type d \( -name tests -o -name __pycache__ -o -name include -o -name cmake \) -exec rm -rf {} +
    find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' -o -name '*.h' \) -delete
    # Remove ONNX Runtime's second copy for C programs, and tools to create and convert models.
    rm -f onnxruntime/capi/libonnxruntime.so.*
    rm -rf onnxruntime/tools onnxruntime/transformers onnxruntime/quantization onnxruntime/datasets
    rm -rf numpy/f2py openvino/tools
    # Keep OpenVINO's frontends for ONNX, its own format and TensorFlow Lite; remove the others and its C interface.
    for reader in tensorflow pytorch paddle jax gguf; do rm -f openvino/libs/libopenvino_${reader}_frontend.so*; done
    rm -f openvino/libs/libopenvino_c.so*
}

# Remove package managers, build tools and documentation from the base. Copyright notices stay, and the list of packages,
# which scanners need.
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
    # Remove setuid and setgid bits.
    find . -xdev -type f -perm /6000 -exec chmod a-s {} +
    echo 'hedgerow:x:10001:10001::/tmp:/usr/sbin/nologin' >>etc/passwd
    echo 'hedgerow:x:10001:' >>etc/group
    mkdir -p opt/hedgerow tmp
    chmod 1777 tmp
    compile_all usr/lib/python3* usr/local/lib/python3*
}

# Install Hedgerow, and for a node the stages of plugins/.
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
    compile_all opt/hedgerow/lib
    chmod -R go-w,a+rX opt/hedgerow
}

# Compile to bytecode: the root file system is read-only, so Python would otherwise compile everything at each start.
compile_all() {
    for folder in "$@"; do
        [ -d "$folder" ] || continue
        find "$folder" -name __pycache__ -prune -exec rm -rf {} +
        /tools/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /image -p / "$folder" || true
    done
}

"$@"
