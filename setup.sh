#!/usr/bin/env bash
# Sets this folder up, for the Makefile: `setup.sh demo` for the demos, `setup.sh test` for tests and checks as well.
#
# What is whole is left alone. Anything else is made anew or completed, wherever an earlier run was interrupted: the stamp
# goes before .venv is changed and comes back when all is done, and a .venv without a stamp is thrown away.
#
#   PYTHON       what .venv is made of
#   UV_VERSION   of the installer of packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
what=$1
BIN=.venv/bin
STAMP=.venv/.ready
PATH=${PATH//"$PWD/$BIN:"/} # where .venv is activated, `python3` would be the one that may be thrown away

stop() {
    echo "error: $1" >&2
    echo "  → $2" >&2
    exit 1
}

has() { PATH=$PATH:/usr/sbin command -v "$1" >/dev/null; } # Debian has mosquitto where PATH may not lead

# No .venv survives another folder, or another Python, as after an upgrade of the distribution.
home() { echo "$PWD $("$BIN/python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)"; }

contents() {
    local files=(setup.sh pyproject.toml plugins/*/pyproject.toml requirements-demo.lock)
    [ "$1" = demo ] || files+=(requirements.lock)
    echo "$1 $(cat "${files[@]}" | sha256sum)"
}

alive() { [ -f "$STAMP" ] && [ "$(head -n 1 "$STAMP")" = "$(home)" ]; }

whole() { alive && grep -qxF "$(contents "$what")" "$STAMP"; }

check_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "Hedgerow needs Python 3.11 or later; $PYTHON is $("$PYTHON" -V 2>&1)." \
            "Install a later one and name it, for example: make $what PYTHON=python3.12"
}

# `needed`: nothing runs without them. `useful`: what lacks them is skipped, be it a pipeline of the demo or a test.
install_programs() {
    local needed=() useful=()
    if ! alive && ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        needed+=("$(basename "$PYTHON")-venv")
    fi
    has mosquitto || needed+=(mosquitto)
    has mosquitto_sub || needed+=(mosquitto-clients)
    [ -d /usr/share/pocketsphinx/test ] || useful+=(pocketsphinx-testdata)
    if [ "$what" = test ]; then
        [ -d /usr/share/sounds/alsa ] || useful+=(alsa-utils)
        has curl || useful+=(curl)
        has faketime || useful+=(faketime)
        has npm || useful+=(npm)
        has softhsm2-util || useful+=(softhsm2)
    elif [ ${#needed[@]} = 0 ]; then
        return # the demo alone asks for nothing that it can do without
    fi
    local all=("${needed[@]}" "${useful[@]}")
    [ ${#all[@]} -gt 0 ] || return 0
    if apt_install "${all[@]}"; then return; fi
    local command="apt-get update && apt-get install ${all[*]}"
    [ ${#needed[@]} = 0 ] || stop "These packages are missing: ${needed[*]}." "As root: $command"
    echo "Tests that use ${useful[*]} will be skipped. To run them, as root: $command"
}

apt_install() {
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    has apt-get && has "${sudo[0]:-apt-get}" || return
    echo "Installing $* with apt-get…"
    # Not with our lock open: the broker that starts with its package would keep it.
    "${sudo[@]}" apt-get update -qq 9<&- &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null 9<&-
}

make_environment() {
    [ ! -e .venv ] || echo "Making .venv anew: it is not complete, or its folder or its Python has changed."
    rm -rf .venv
    "$PYTHON" -m venv .venv
    "$BIN/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

install_packages() {
    local lock=requirements.lock
    [ "$what" = test ] || lock=requirements-demo.lock
    echo "Installing the locked packages…"
    "$BIN/uv" pip install --quiet --python "$BIN/python" --require-hashes --no-deps -r "$lock"
    "$BIN/uv" pip install --quiet --python "$BIN/python" --no-deps --no-build-isolation \
        -e . -e plugins/vision -e plugins/audio -e plugins/signal
}

make_models() {
    "$BIN/python" -m hedgerow_signal.train .venv/models/vibration.onnx
    mkdir -p configs/models
    cp .venv/models/vibration.onnx configs/models/vibration.onnx.new
    mv configs/models/vibration.onnx.new configs/models/vibration.onnx
}

fetch_model() { ! has npm || "$BIN/python" -m hedgerow_vision.fetch_ssd .venv/models; }

exec 9<setup.sh
flock -n 9 || { echo "Waiting for another set-up of this folder…" && flock 9; }
if whole; then exit; fi
if ! alive && has "$PYTHON"; then check_python; fi
install_programs
if ! alive; then
    check_python
    make_environment
fi
rm -f "$STAMP"
install_packages
make_models >/dev/null
done=(demo)
if [ "$what" = test ]; then
    if fetch_model >/dev/null; then done+=(test); else echo "Tests that use this model will be skipped."; fi
fi
{ home && for each in "${done[@]}"; do contents "$each"; done; } >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
