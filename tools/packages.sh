# Which system packages are missing, how they are installed, what locate is told. Sourced by setup and test.

# The system's own python where it is new enough: one below somebody's home is of no use to other users.
python=/usr/bin/python3
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
new_enough "$python" || python=python3
new_enough "$python" || { echo "python3, 3.11 or later, is needed" >&2; exit 1; }

# Prints the packages that ibpfs needs and that are not here.
missing_to_run() {
    command -v fusermount3 >/dev/null 2>&1 || echo fuse3
    command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || echo gcc
    { command -v cc >/dev/null 2>&1 && echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1; } || echo libc6-dev
    command -v pkg-config >/dev/null 2>&1 || echo pkg-config
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || echo python3-venv
    "$python" -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())' 2>/dev/null || echo python3-dev
}

# Prints the packages that the tests need besides.
missing_to_test() {
    for pair in fio rsync sqlite3 getfacl:acl getfattr:attr strace tcpdump git ps:procps fuser:psmisc setpriv:util-linux \
        systemd-analyze:systemd make stress-ng bonnie++ dbench procmail npm reformime:maildrop mutt chromium \
        chromedriver:chromium-driver; do
        PATH=$PATH:/usr/sbin command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair##*:}"
    done
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || echo postgresql
    [ -e "$(git --exec-path 2>/dev/null)/git-send-email" ] || echo git-email
    perl -MMail::Address -e 1 2>/dev/null || echo libmailtools-perl
    # It would take the place of another mail server; where there is one, the tests with it do not run.
    [ -e /usr/sbin/sendmail ] || echo postfix
}

# Installs its arguments; without the right to, says what to ask for.
install_missing() {
    [ $# -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "missing: $*; first run: sudo apt-get install $*" >&2
        exit 1
    fi
    command -v apt-get >/dev/null 2>&1 || { echo "missing: $*; install them and run this again" >&2; exit 1; }
    echo "installing: $*"
    export DEBIAN_FRONTEND=noninteractive
    # A database server that is there for the tests alone makes no database of its own, and does not start.
    quiet=/etc/postgresql-common/createcluster.d/ibpfs-tests.conf
    case " $* " in *" postgresql "*) mkdir -p "${quiet%/*}" && echo 'create_main_cluster = false' >"$quiet" ;; esac
    # Nor does a mail server.
    case " $* " in *" postfix "*) echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections ;; esac
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"; } >/dev/null || exit 1
    rm -f "$quiet"
}

# Has updatedb, whose configuration this is, leave mounted volumes alone: it would read every name each night.
spare_from_updatedb() {
    [ -f "$1" ] || return 0
    ! grep -Eq '^[[:space:]]*PRUNEFS[[:space:]]*=.*[" ]fuse\.ibpfs[" ]' "$1" || return 0
    if grep -Eq '^[[:space:]]*PRUNEFS[[:space:]]*=[[:space:]]*"' "$1"; then
        sed -i 's/^\([[:space:]]*PRUNEFS[[:space:]]*=[[:space:]]*"\)/\1fuse.ibpfs /' "$1"
    else
        echo 'PRUNEFS="fuse.ibpfs"' >>"$1"
    fi
}
