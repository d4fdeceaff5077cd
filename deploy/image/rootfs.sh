#!/usr/bin/env bash
# Assemble in the folder $1 what the final image holds: the interpreter, the part of its standard library that a server
# can reach, the dependencies and the service, and the shared libraries that these name. The Containerfile runs it in
# a Debian stage where all of that is installed. Nothing here names a processor architecture or a version of Python.
set -euo pipefail
root="$1"
stdlib="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
site="$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

mkdir -p "$root"/{dev,etc/pythonricing,etc/ssl/certs,proc,run,sys,usr/bin,usr/lib/ssl,var/lib/dpkg/status.d}
mkdir -m 1777 "$root/tmp"
for link in /bin /lib /lib64; do  # links into /usr, as Debian has them; /lib64 exists on some architectures only
    if [ -L "$link" ]; then
        cp -P "$link" "$root"
        mkdir -p "$root/usr$link"
    fi
done

cp -a --parents "$(readlink -f /usr/bin/python3)" /usr/bin/python3 "$root"
cp -a --parents "$(readlink -f /usr/bin/sh)" /usr/bin/sh "$root"  # podman runs the probes of a pod through it
cp -a --parents /usr/local/bin/{granian,probe,pythonricing} "$root"
cp -a --parents "$stdlib" "$site" "$root"
ln -s "$site/pythonricing/serve/granian-log.json" "$root/etc/pythonricing/"

# Tools, tests and documentation of the standard library, what belongs to terminals, to mail and to databases in files, what
# stands in for modules in C, and the codecs that neither HTTP nor a store nor an archive speaks. Anything that the service
# imports is tried at the end of this script.
cd "$root$stdlib"
rm -rf __phello__ _pyrepl config-* curses dbm ensurepip idlelib lib2to3 pydoc_data sqlite3 test tkinter turtledemo \
    unittest venv xml xmlrpc
rm -f EXTERNALLY-MANAGED LICENSE.txt __hello__.py _osx_support.py _pydatetime.py _pydecimal.py _pyio.py antigravity.py \
    bdb.py cProfile.py cmd.py code.py doctest.py filecmp.py fileinput.py ftplib.py imaplib.py mailbox.py modulefinder.py \
    optparse.py pdb.py pickletools.py plistlib.py poplib.py profile.py pstats.py pyclbr.py pydoc.py rlcompleter.py \
    shelve.py sitecustomize.py smtplib.py statistics.py symtable.py tabnanny.py tarfile.py this.py trace.py turtle.py \
    wave.py webbrowser.py zipapp.py
rm -f lib-dynload/{_codecs_,_ctypes_test,_curses,_dbm,_lsprof,_sqlite3,_test,_xxtest,readline,xx}*
find encodings -name '*.py' -regextype posix-extended -not -regex \
    '.*/(__init__|aliases|ascii|charmap|cp1252|cp437|idna|iso8859_1|latin_1|punycode|(raw_)?unicode_escape|utf_.*)\.py' -delete

# The sources that extension modules were compiled from, and their symbols (14 of uvloop's 16 MB).
cd "$root$site"
find . -type f -regextype posix-extended -regex '.*\.(c|h|pxd|pxi|pyi|pyx|cyclonedx\.json)' -delete
find "$root" -name '*.so' -exec strip --strip-unneeded {} +

# The zone database as one archive, a tenth of its size: its files are many and small.
python3 - <<'EOF'
import pathlib, shutil, zipfile

with zipfile.ZipFile("tzdata.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for file in sorted(pathlib.Path("tzdata").rglob("*")):
        if file.is_file() and file.suffix not in {".tab", ".zi", ".pyc"} and file.name not in {"leapseconds", "zones"}:
            archive.write(file)
shutil.rmtree("tzdata")
pathlib.Path("tzdata.pth").write_text("tzdata.zip\n")
EOF

# The loader and every shared library that the interpreter and the extension modules name.
find "$root" -type f \( -name '*.so' -o -path "$root/usr/bin/*" \) -exec ldd {} + \
    | awk '/^\t/ { for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | sort -u \
    | xargs cp -L --parents --target-directory "$root"

# A numeric user, name resolution that reads /etc/hosts first, and certificate authorities for stores that speak TLS.
echo 'pythonricing:x:10001:10001::/nonexistent:/nonexistent' > "$root/etc/passwd"
echo 'pythonricing:x:10001:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
cp -L /etc/os-release "$root/etc/"
cp -L /etc/ssl/openssl.cnf "$root/etc/ssl/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp -P /usr/lib/ssl/{cert.pem,certs,openssl.cnf} "$root/usr/lib/ssl/"

# The packages that all of this came from: their versions for vulnerability scanners, their licences for people.
{
    find "$root/usr" -type f \( -name '*.so*' -o -path '*/usr/bin/*' \) -printf '/%P\n' \
        | while read -r file; do dpkg -S "/usr$file" "$file" 2>/dev/null || true; done | grep -v '^diversion' | cut -d: -f1
    echo ca-certificates
} | sort -u | while read -r package; do
    dpkg -s "$package" > "$root/var/lib/dpkg/status.d/$package"
    if [ -e "/usr/share/doc/$package/copyright" ]; then
        cp -L --parents "/usr/share/doc/$package/copyright" "$root"
    fi
done

# Byte code is written here, because a read-only root can't take it later and 16 workers should not each compile it. It
# is never checked against a source (unchecked-hash), and takes the source's place for everything but the service itself:
# 12 MB that would only add the text of a line to where a traceback already names its file and number.
find "$root" -name __pycache__ -prune -exec rm -rf {} +
mv "$root$site/pythonricing" "$root/service"
python3 -m compileall -q -b -j 0 --invalidation-mode unchecked-hash -s "$root" -p / "$root$stdlib" "$root$site"
find "$root$stdlib" "$root$site" -name '*.py' -delete
mv "$root/service" "$root$site/pythonricing"
python3 -m compileall -q --invalidation-mode unchecked-hash -s "$root" -p / "$root$site/pythonricing"

# What the service loads must be there, in the root it will have.
chroot "$root" /usr/bin/python3 -B -I -c '
import asyncio, sys, zoneinfo
import granian.cli, granian.server, hiredis, prometheus_client.multiprocess, redis.asyncio, ssl, uvloop
import pythonricing.serve.supervisor, pythonricing.serve.cli
zoneinfo.ZoneInfo("Europe/Berlin")
asyncio.run(asyncio.sleep(0), loop_factory=uvloop.new_event_loop)
'
