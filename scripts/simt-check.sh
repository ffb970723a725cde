#!/usr/bin/env bash
# The simulator under every kernel test, held to its contract: planted faults, wrappers, threads. Plain, then with
# AddressSanitizer and UndefinedBehaviorSanitizer. Needs a C++ compiler only: $CXX, c++ or g++.
# usage: scripts/simt-check.sh [plain|address|undefined ...]
set -euo pipefail
cd "$(dirname "$0")/../kernels/simt"
cxx=${CXX:-$(command -v c++ || command -v g++ || true)}
[ -n "$cxx" ] || { echo "no C++ compiler: set CXX" >&2; exit 2; }
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT

flags=(-std=c++17 -ffp-contract=off -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas -pthread)
build() {
    case $1 in
        plain) "$cxx" "${flags[@]}" -O2 host.cpp check.cpp -o "$built/$1" ;;
        address) "$cxx" "${flags[@]}" -O1 -g1 -fsanitize=address host.cpp check.cpp -o "$built/$1" ;;
        undefined) "$cxx" "${flags[@]}" -O1 -g1 -fsanitize=undefined -fno-sanitize-recover=all host.cpp check.cpp -o "$built/$1" ;;
        *) echo "no such build: $1 (plain, address, undefined)" >&2; return 2 ;;
    esac
}

kinds=("$@")
[ ${#kinds[@]} -gt 0 ] || kinds=(plain address undefined)
bad=0 building=()
for kind in "${kinds[@]}"; do build "$kind" & building+=($!); done
for i in "${!kinds[@]}"; do
    wait "${building[$i]}" || { echo "${kinds[$i]}: does not build"; bad=1; continue; }
    echo "== ${kinds[$i]}"
    timeout 300 "$built/${kinds[$i]}" || { echo "${kinds[$i]}: failed"; bad=1; }
done
exit $bad
