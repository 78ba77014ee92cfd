#!/usr/bin/env bash
# Makes the machine and .venv ready.  Usage: tools/setup.sh [--dev]
#
#   (nothing)  what `make run` needs: libvirt, QEMU, and the locked run-time libraries
#   --dev      also what `make test` and `make demo` need: PostgreSQL, the test tools, the openstack client
#
# A second call compares two small stamps and does nothing. Whatever is missing is installed, one line a step;
# a step's own output is kept back and shown only if the step fails.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=run
case "${1:-}" in
'') ;;
--dev) mode=dev ;;
*)
    printf 'usage: %s [--dev]\n' "$0" >&2
    exit 2
    ;;
esac

# The daemon and its clients; the emulator and its disk tool; its NAT network and what gives out the addresses there;
# what libvirt-python is compiled with; what a small guest's programs are; and what makes key pairs.
packages_run=(
    libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
    libvirt-daemon-config-network dnsmasq-base
    libvirt-dev pkg-config gcc libc6-dev python3-dev python3-venv
    busybox-static openssh-client
)
# The store's tests run on both databases; a host's power is taken from a simulated IPMI controller.
packages_dev=(postgresql openipmi)
# libvirt-daemon-system asks for systemd unless this plays its part. Where another init is installed it is added, and
# nothing is ever removed: installing a control plane must not replace a machine's init.
other_inits=(sysvinit-core runit-init)
packages_other_init=(libvirt-daemon-system-sysv)

oldest_python=11 # of Python 3

say() { printf '==> %s\n' "$*"; }

die() {
    printf 'setup: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

log=
trap '[[ -z $log ]] || rm -f "$log"' EXIT

# step "what is done" "what to do if it fails" command...
step() {
    local title=$1 hint=$2 began=$SECONDS
    shift 2
    say "$title"
    [[ -n $log ]] || log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        printf '    --- the last lines it printed ---\n' >&2
        tail -n 30 "$log" | sed 's/^/    /' >&2
        die "failed: $title" "$hint"
    fi
    if ((SECONDS - began >= 3)); then printf '    done in %d s\n' $((SECONDS - began)); fi
}

# ------------------------------------------------------------------------------------------- Debian packages

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -- "$@"; fi
}

# Asks dpkg once for all; a package that dpkg has never heard of prints no line, and the call then fails.
missing_packages() {
    local installed
    # shellcheck disable=SC2016 # the ${...} are dpkg-query's own
    installed=$(dpkg-query --show --showformat='${db:Status-Abbrev} ${Package}\n' "$@" 2>/dev/null |
        awk '$1 == "ii" || $1 == "hi" { print $2 }' || true)
    printf '%s\n' "$@" | grep -vxF -e "${installed:-none}" || true
}

check_without_dpkg() {
    local tool absent=()
    for tool in libvirtd virsh qemu-system-x86_64 qemu-img gcc pkg-config busybox; do
        command -v "$tool" >/dev/null || [[ -x /usr/sbin/$tool ]] || absent+=("$tool")
    done
    if ((${#absent[@]})); then
        die "this is not Debian, so nothing was installed, and these programs are missing: ${absent[*]}" \
            "Install libvirt (with its development files), QEMU for x86, gcc, pkg-config, the Python" \
            "headers and a static busybox with your system's package manager, and run this again."
    fi
    say "This is not Debian; going on with the programs that are installed"
}

install_packages() {
    local wanted=("${packages_run[@]}") missing
    if [[ $mode == dev ]]; then wanted+=("${packages_dev[@]}"); fi
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        check_without_dpkg
        return
    fi
    if (($(missing_packages "${other_inits[@]}" | wc -l) < ${#other_inits[@]})); then
        wanted+=("${packages_other_init[@]}")
    fi
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    if ! ((${#missing[@]})); then return; fi
    if ((EUID != 0)) && ! command -v sudo >/dev/null; then
        die "these Debian packages are missing, and there is no sudo to install them with: ${missing[*]}" \
            "As root, run:  apt-get update && apt-get install --no-install-recommends ${missing[*]}" \
            "and then, as yourself, run this again."
    fi
    if ((EUID != 0)) && ! sudo -n true 2>/dev/null; then
        say "sudo will ask for your password, to install: ${missing[*]}"
        sudo -v || die "sudo did not let you in" \
            "Ask an administrator for:  apt-get install --no-install-recommends ${missing[*]}"
    fi
    step "Reading Debian's package lists" "Is there a network, and is /etc/apt/sources.list right?" \
        as_root apt-get -q -o DPkg::Lock::Timeout=300 update
    step "Installing Debian packages (a few minutes): ${missing[*]}" \
        "Try by hand: apt-get install --no-install-recommends --no-remove ${missing[*]}" \
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends --no-remove "${missing[@]}"
}

# ------------------------------------------------------------------------------------------------ Python, .venv

# The system's own Python first (its headers come with python3-dev), else the newest that is on the PATH.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3.14 python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, $oldest_python))" \
                2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.$oldest_python or newer with the venv module was found" \
        "Debian 12 and later have one: apt-get install python3 python3-venv python3-dev"
}

pip() {
    .venv/bin/python -m pip --quiet --no-input --disable-pip-version-check install \
        --progress-bar off --root-user-action=ignore "$@"
}

# A lock's key: its own bytes, and what else decides how it is installed.
key() { cat pyproject.toml tools/setup.sh requirements-build.lock "$@" | sha256sum | cut -d ' ' -f 1; }

stamped() { [[ -x .venv/bin/stateward && -f .venv/stamp-$1 && $(<".venv/stamp-$1") == "$2" ]]; }

install_locked() {
    local lock=$1 title=$2
    local hint="Is there a network? Remove .venv and try again if its Python has changed."
    if ! [[ -x .venv/bin/python ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        rm -rf .venv
        step "Making .venv with $("$python" -V)" "Remove .venv and try again." "$python" -m venv .venv
    fi
    # The build backend first, so that nothing below fetches one that no lock names.
    step "Installing the locked build backend" "$hint" pip --require-hashes -r requirements-build.lock
    step "$title" "$hint" pip --require-hashes --no-build-isolation -r "$lock"
    step "Installing stateward itself" "$hint" pip --no-deps --no-build-isolation --no-index --editable .
}

run_key=$(key requirements.lock)
dev_key=$(key requirements.lock requirements-dev.lock)

is_ready() {
    case $mode in
    run) stamped run "$run_key" ;;
    dev) stamped dev "$dev_key" ;;
    esac
}

if is_ready; then exit 0; fi

# Two at once would install over each other; the second waits, and then finds nothing left to do.
exec 9>.setup.lock
if ! flock --nonblock 9; then
    say "Waiting for another setup to finish"
    flock 9
    if is_ready; then exit 0; fi
fi

install_packages
if [[ $mode == run ]]; then
    install_locked requirements.lock "Installing the run-time libraries (a minute: libvirt-python is compiled)"
else
    install_locked requirements-dev.lock "Installing the development libraries (one or two minutes)"
    printf '%s\n' "$dev_key" >.venv/stamp-dev
fi
# The development lock holds the run-time lock's versions, so either way the run-time libraries are there.
printf '%s\n' "$run_key" >.venv/stamp-run
say "Ready"
