#!/usr/bin/env bash
# Sets up this folder for the Makefile: `setup.sh demo` for the demos, `setup.sh test` also for tests and checks.
#
# Does nothing if everything is up to date. It may be interrupted at any point and run again: the stamp is removed before
# .venv changes and written last, and a .venv without a valid stamp is deleted.
#
#   PYTHON       interpreter for .venv
#   UV_VERSION   version of uv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
purpose=$1
BIN=.venv/bin
STAMP=.venv/.ready
PATH=${PATH//"$PWD/$BIN:"/} # in an activated .venv, `python3` would be the one that may be deleted

stop() {
    echo "error: $1" >&2
    echo "  → $2" >&2
    exit 1
}

has() { PATH=$PATH:/usr/sbin command -v "$1" >/dev/null; } # Debian installs mosquitto in /usr/sbin

# A .venv is valid only for its folder and Python version, which changes with an upgrade of the distribution.
identity() { echo "$PWD $("$BIN/python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)"; }

fingerprint() {
    local files=(setup.sh pyproject.toml plugins/*/pyproject.toml requirements-demo.lock)
    [ "$1" = demo ] || files+=(requirements.lock)
    echo "$1 $(cat "${files[@]}" | sha256sum)"
}

venv_valid() { [ -f "$STAMP" ] && [ "$(head -n 1 "$STAMP")" = "$(identity)" ]; }

up_to_date() { venv_valid && grep -qxF "$(fingerprint "$purpose")" "$STAMP"; }

check_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "Hedgerow needs Python 3.11 or later; $PYTHON is $("$PYTHON" -V 2>&1)." \
            "Install a later version and select it, for example: make $purpose PYTHON=python3.12"
}

# `needed` packages are required. Without `useful` ones, tests and pipelines of the demo are skipped.
install_programs() {
    local needed=() useful=()
    if ! venv_valid && ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        needed+=("$(basename "$PYTHON")-venv")
    fi
    has mosquitto || needed+=(mosquitto)
    has mosquitto_sub || needed+=(mosquitto-clients)
    [ -d /usr/share/pocketsphinx/test ] || useful+=(pocketsphinx-testdata)
    if [ "$purpose" = test ]; then
        [ -d /usr/share/sounds/alsa ] || useful+=(alsa-utils)
        has curl || useful+=(curl)
        has faketime || useful+=(faketime)
        has npm || useful+=(npm)
        has softhsm2-util || useful+=(softhsm2)
    elif [ ${#needed[@]} = 0 ]; then
        return # for the demo, do not install optional packages only
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
    # Close the lock, or the broker that its package starts would inherit and hold it.
    "${sudo[@]}" apt-get update -qq 9<&- &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null 9<&-
}

make_environment() {
    [ ! -e .venv ] || echo "Recreating .venv: it is incomplete, or its folder or Python version has changed."
    rm -rf .venv
    "$PYTHON" -m venv .venv
    "$BIN/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

install_packages() {
    local lock=requirements.lock
    [ "$purpose" = test ] || lock=requirements-demo.lock
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
if up_to_date; then exit; fi
if ! venv_valid && has "$PYTHON"; then check_python; fi
install_programs
if ! venv_valid; then
    check_python
    make_environment
fi
rm -f "$STAMP"
install_packages
make_models >/dev/null
completed=(demo)
if [ "$purpose" = test ]; then
    if fetch_model >/dev/null; then completed+=(test); else echo "Tests that use this model will be skipped."; fi
fi
{ identity && for each in "${completed[@]}"; do fingerprint "$each"; done; } >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
