#!/usr/bin/env bash
# Starts and stops the broker of local.conf in the background: `broker/local.sh start`, `broker/local.sh stop`.
#
# Mosquitto alone would end silently if another broker has its port, and everything would talk to that one. Debian's package
# starts such a broker.
set -euo pipefail
PATH=$PATH:/usr/sbin # Debian installs mosquitto there
config=$(dirname "${BASH_SOURCE[0]}")/local.conf
pid_file=.broker/mosquitto.pid
read -r _ port address < <(grep '^listener' "$config")

fail() {
    echo "error: $1" >&2
    echo "  → $2" >&2
    exit 1
}

# A process that has ended but was not collected yet has no command line.
running() { [ -f "$pid_file" ] && grep -qs mosquitto "/proc/$(cat "$pid_file")/cmdline"; }

accepts() { (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; }

start() {
    if running; then
        echo "The broker is running already, on $address:$port."
        return
    fi
    command -v mosquitto >/dev/null || fail "mosquitto is not installed." "As root: apt-get install mosquitto mosquitto-clients"
    if accepts; then
        fail "Another program listens on $address:$port, so this broker cannot start." \
            "Debian's package starts a broker of its own there: stop it with \`sudo systemctl stop mosquitto\`. To see what it is, as root: ss -ltnp 'sport = :$port'"
    fi
    mkdir -p .broker
    rm -f "$pid_file"
    mosquitto -d -c "$config" || fail "The broker did not start." "Mosquitto's message is above; fix $config."
    for _ in $(seq 100); do
        if running && accepts; then
            echo "The broker accepts connections on $address:$port."
            return
        fi
        sleep 0.1
    done
    fail "The broker did not start: $(tail -n 1 .broker/mosquitto.log 2>/dev/null)" "See .broker/mosquitto.log."
}

stop() {
    if ! running; then
        echo "The broker is not running."
        return
    fi
    kill "$(cat "$pid_file")"
    while running; do sleep 0.1; done
    echo "The broker has stopped; sessions and queues are saved in .broker/."
}

case "${1:-}" in
start | stop) "$1" ;;
*) fail "Usage: broker/local.sh start|stop" "Run it in the folder that shall hold the broker's data, .broker/." ;;
esac
