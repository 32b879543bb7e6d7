# shellcheck shell=bash
# Two nodes with pods, as network namespaces; to be sourced after common.sh. Names hold this shell's
# process id. What `start_in` starts in them is ended by `stop_all`.

network="adit-demo-$$"
processes=()
pods=0
declare -A addresses=()

name_of() { printf '%s-%s' "$network" "$1"; }
path_of() { printf '/run/netns/%s' "$(name_of "$1")"; }
address_of() { printf '%s' "${addresses[$1]}"; }

# Runs a command in a node or a pod.
run_in() { # NODE|POD COMMAND…
    local place
    place="$(path_of "$1")"
    shift
    nsenter "--net=$place" "$@"
}

# Starts one there that goes on; it ends with this shell at the latest. Its id is in $!.
start_in() { # NODE|POD USER LOG COMMAND…
    local place user="$2" log="$3"
    place="$(path_of "$1")"
    shift 3
    (exec nsenter "--net=$place" setpriv --reuid="$user" --regid="$user" --clear-groups --pdeathsig KILL "$@") \
        >>"$log" 2>&1 &
    processes+=($!)
}

make_namespace() { # NAME
    local name
    name="$(name_of "$1")"
    ip netns add "$name"
    ip -n "$name" link set lo up
}

make_nodes() {
    local number
    make_namespace node1
    make_namespace node2
    for number in 1 2; do
        run_in "node$number" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
        ip -n "$(name_of "node$number")" -batch - <<IP
link add br0 type bridge forward_delay 0
link set br0 up
addr add 10.1.$number.1/24 dev br0
IP
    done
    ip -n "$(name_of node1)" link add eth0 type veth peer name eth0 netns "$(name_of node2)"
    for number in 1 2; do
        ip -n "$(name_of "node$number")" -batch - <<IP
link set eth0 up
addr add 10.0.0.$number/24 dev eth0
route add 10.1.$((3 - number)).0/24 via 10.0.0.$((3 - number))
IP
    done
}

make_pod() { # NODE-NUMBER NAME
    pods=$((pods + 1))
    local address="10.1.$1.$((pods + 9))"
    make_namespace "$2"
    ip -n "$(name_of "node$1")" -batch - <<IP
link add pod$pods type veth peer name eth0 netns $(name_of "$2")
link set pod$pods master br0 up
IP
    ip -n "$(name_of "$2")" -batch - <<IP
link set eth0 up
addr add $address/24 dev eth0
route add default via 10.1.$1.1
IP
    addresses[$2]="$address"
}

# Repeats a command until it succeeds, at most so many seconds.
within() { # SECONDS COMMAND…
    local end=$(($(date +%s%N) + $1 * 1000000000))
    shift
    until "$@"; do
        if [ "$(date +%s%N)" -gt "$end" ]; then return 1; fi
        sleep 0.05
    done
}

# Asks one process to end, and makes it end.
stop() { # PID
    kill -TERM "$1" 2>/dev/null || return 0
    within 3 gone "$1" || kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}
gone() { ! kill -0 "$1" 2>/dev/null; }

stop_all() {
    local pid
    for pid in "${processes[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${processes[@]}"; do stop "$pid"; done
    processes=()
}

remove_network() {
    local name
    for name in $(ip netns list | awk -v own="$network-" 'index($1, own) == 1 { print $1 }'); do
        ip netns del "$name" || true
    done
}

# Removes what runs that were killed have left.
sweep_network() {
    local name
    for name in $(ip netns list | awk '/^adit-demo-/ { print $1 }'); do
        if left_behind "$name"; then ip netns del "$name" || true; fi
    done
    for name in /tmp/adit-demo-*; do
        if [ -d "$name" ] && left_behind "${name#/tmp/}"; then rm -rf "$name"; fi
    done
}
left_behind() { # adit-demo-PID…
    local pid="${1#adit-demo-}"
    [ ! -e "/proc/${pid%%[-.]*}" ]
}
