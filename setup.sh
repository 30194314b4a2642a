#!/usr/bin/env bash
# Installs what is missing: Debian packages, a virtual environment in .venv, the Python packages.
# Safe to run again; when nothing has changed it returns at once.
#
#   PYTHON=python3.12 ./setup.sh          another interpreter (3.11 or newer)
# For torch, in a fresh checkout or after 'make clean':
#   TORCH=cuda ./setup.sh                 torch as the package index has it, CUDA libraries included
#   TORCH_PIP_ARGS="…" ./setup.sh         your own pip arguments for torch (an index of yours, say)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

TORCH_VERSION=2.13.0
# command it provides : Debian package
NEEDED=(
    mnexec:mininet brctl:bridge-utils ifconfig:net-tools ip:iproute2 tc:iproute2
    ethtool:ethtool unshare:util-linux ffmpeg:ffmpeg
)

say() { printf '%s\n' "$*" >&2; }
die() { say "setup: $*"; exit 1; }
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if has "$candidate" &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            printf '%s' "$candidate"
            return
        fi
    done
}

install_debian_packages() {
    local missing=() entry as_root=()
    for entry in "${NEEDED[@]}"; do
        has "${entry%%:*}" || missing+=("${entry##*:}")
    done
    [ -n "$(find_python)" ] || missing+=(python3)
    if [ -z "$(find_python)" ] || ! "$(find_python)" -c 'import ensurepip' 2>/dev/null; then
        missing+=(python3-venv)
    fi
    [ "${#missing[@]}" -gt 0 ] || return 0
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "please install as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    has apt-get || die "please install with your package manager: ${missing[*]}"
    say "Installing Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get -qq update ||
        die "apt-get update failed; please install: ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get install failed; please install: ${missing[*]}"
}

# Links run faster with the loop in C, and without it just the same: never a reason to fail.
install_compiler() {
    local as_root=()
    if has cc; then
        return 0
    fi
    [ "$(id -u)" -eq 0 ] || as_root=(sudo --non-interactive)
    say "Installing a C compiler"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends gcc libc6-dev >/dev/null 2>&1 ||
        { "${as_root[@]}" apt-get -qq update && "${as_root[@]}" env \
            DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
            gcc libc6-dev; } >/dev/null 2>&1 ||
        say "No C compiler (packages gcc, libc6-dev): the user-space link will be slower."
}

# What pip would take for torch here may be a CUDA build of several gigabytes. That is asked first,
# and unless wanted, the CPU build is taken by uv, which knows where PyTorch publishes it.
install_torch() {
    local pip=(.venv/bin/python -m pip --disable-pip-version-check)
    local wanted="torch==$TORCH_VERSION"
    if .venv/bin/python -c 'import importlib.metadata as m, sys
sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' "$TORCH_VERSION" 2>/dev/null; then
        return 0
    fi
    if [ -n "${TORCH_PIP_ARGS:-}" ]; then
        # shellcheck disable=SC2086  # several arguments are meant
        "${pip[@]}" install --quiet "$wanted" $TORCH_PIP_ARGS
        return
    fi
    local brings=''
    if [ "${TORCH:-cpu}" != cuda ]; then
        brings=$("${pip[@]}" install --dry-run --quiet --report - "$wanted") ||
            die "pip finds no $wanted; is there a network?"
    fi
    if ! grep -qiE '"name": *"(nvidia|cuda)-' <<<"$brings"; then
        "${pip[@]}" install --quiet "$wanted"
    else
        say "Taking the CPU build of torch; for GPUs: make clean, then TORCH=cuda make setup."
        "${pip[@]}" install --quiet uv
        .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend=cpu "$wanted"
    fi
}

fingerprint() { cat pyproject.toml setup.sh {testbed/links,adapters,cluster_sim}/_*.[ch] | sha256sum; }

install_debian_packages
python=$(find_python)
[ -n "$python" ] || die "needs Python 3.11 or newer; name one with PYTHON=…"
if [ "$(cat .venv/.setup 2>/dev/null)" = "$(fingerprint)" ] && [ -x .venv/bin/testbed ]; then
    exit 0
fi
install_compiler
say "Installing Python packages into .venv (a few minutes the first time)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
install_torch
.venv/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[dev]'
fingerprint >.venv/.setup
