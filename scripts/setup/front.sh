# Sourced by the scripts beside this folder: finds a Python for them. Needs nothing but a POSIX shell.
# shellcheck shell=sh

python_of() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; print(sys.executable); sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# The oldest first: constraints.txt was made and tried with it.
python=
for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
    # Its real path: where python3.11 is a version switcher's script, that one is slow, and is asked only once.
    if python=$(python_of "$candidate"); then
        break
    fi
    python=
done

if [ -z "$python" ]; then
    printf '%s\n' \
        "iChat needs Python 3.11, 3.12, 3.13 or 3.14, and finds none of them here." \
        "Install one and run this again. On Debian and Ubuntu:  apt install python3 python3-venv" \
        "If yours is not called python3 or python3.NN, put it on PATH under such a name." >&2
    exit 1
fi

# run MODULE [ARGUMENT...]: in place of this shell, so that signals reach it. -P: what lies where the person is now
# is not imported by mistake.
run() {
    exec "$python" -P "$root/scripts/setup/bootstrap.py" "$@"
}
