#!/bin/sh
# The kernel tests for AVX-512 on a machine that has none: the emulator Bochs boots a Debian kernel that runs nothing
# but them, big tables thinned out. Usage: sh tests/emulate_avx512.sh [avx512|avx512bf16] [argument for Catch]...
# avx512bf16 runs the tests of the products of bf16 and of integers alone. Ends as ctest does, with a line of what
# passed.
set -eu
cd "$(dirname "$0")/.."

skip='accuracy|statistics|_double'
case ${1-} in
  avx512bf16) isa=$1 arch=avx512bf16 only='^simd/|^attention/(bf16|integer)' ;;
  *) isa=avx512 arch=avx512 only='^(simd|score|mask|softmax|attention)/' ;;
esac
case ${1-} in avx512*) shift ;; esac
build=$PWD/build-$isa-emulated emulator=$PWD/build-emulator
mkdir -p "$build" "$emulator"

sh cmake/debian.sh g++ make xz-utils cmake ninja-build binutils libxsimd-dev libeigen3-dev catch2 bochsbios vgabios \
  cpio xorriso isolinux syslinux-common

# --- The emulator, and the kernel and the shell that it boots --------------------------------------------------------

# Debian's own binary has the debugger built in, which makes it five times slower.
bochs=$emulator/bochs-3.0/bochs
if [ ! -x "$bochs" ]; then
  echo "building Bochs, once..."
  sh cmake/from_debian.sh b/bochs/bochs_3.0+dfsg.orig.tar.xz \
    78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b "$emulator/bochs.tar.xz"
  tar -xf "$emulator/bochs.tar.xz" -C "$emulator"
  (
    cd "$emulator/bochs-3.0"
    # VCVTNE2PS2BF16 takes its upper half from beyond the register.
    sed -i 's/to_bfloat16(op1\.vmm32u(n))/to_bfloat16(op1.vmm32u(n - DWORD_ELEMENTS(len)))/' cpu/avx/avx512_bf16.cc
    ./configure CFLAGS=-O2 CXXFLAGS=-O2 --enable-x86-64 --enable-all-optimizations --enable-avx --enable-evex \
      --enable-amx --enable-cet --enable-uintr --enable-vmx=2 --enable-protection-keys --with-nogui --disable-docbook
    make -j "$(nproc)" bochs
  ) >"$emulator/log.txt" 2>&1 || { tail -n 20 "$emulator/log.txt"; exit 1; }
fi
if [ ! -e "$emulator/debian/bin/busybox" ]; then
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
  (cd "$emulator" && apt-get download "$kernel" busybox-static 2>&1) || exit 1
  for package in "$emulator"/linux-image-*.deb "$emulator"/busybox-static_*.deb; do
    dpkg-deb -x "$package" "$emulator/debian"
  done
fi

# --- The tests -------------------------------------------------------------------------------------------------------

# `false` in the place of an emulator: no test can be asked for its name here.
cmake --preset avx512 -B "$build" -DCMAKE_CROSSCOMPILING_EMULATOR=false "-DATTENTION_BALANCER_ARCH=$arch" \
  "-DATTENTION_BALANCER_KERNEL_TESTS=$only" "-DATTENTION_BALANCER_KERNEL_TESTS_SKIP=$skip"
cmake --build "$build" --target kernel_tests isa_probe

# --- A disc with the kernel, and in its memory the tests -------------------------------------------------------------

files=$build/files disc=$build/disc
rm -rf "$files" "$disc"
mkdir -p "$files/bin" "$files/dev" "$files/proc" "$files$PWD/tests" "$disc"
cp -r tests/golden "$files$PWD/tests/"
cp "$emulator/debian/bin/busybox" "$files/bin/"
for program in "$build/tests/kernel_tests" "$build/tests/isa/isa_probe"; do
  strip -o "$files/bin/$(basename "$program")" "$program"
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$files$(dirname "$library")"
    cp -L "$library" "$files$library"
  done
done
arguments=
for argument in "$@"; do
  arguments="$arguments '$(printf %s "$argument" | sed "s/'/'\\\\''/g")'"
done
cat >"$files/init" <<END
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t proc proc /proc
export ATTENTION_BALANCER_TEST_QUICK=1
{
  /bin/busybox grep -m 1 ^flags /proc/cpuinfo
  /bin/isa_probe
  /bin/kernel_tests -d yes$arguments
  echo "exit status \$?"
} 2>&1 | /bin/busybox cat >/dev/ttyS0
/bin/busybox sleep 1  # until the serial line has passed it all on
/bin/busybox poweroff -f
END
chmod +x "$files/init"
(cd "$files" && find . | cpio -o -H newc -R 0:0 --quiet) >"$disc/initrd"
cp "$emulator"/debian/boot/vmlinuz-* "$disc/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$disc/"
cat >"$disc/isolinux.cfg" <<END
default tests
label tests
kernel vmlinuz
append initrd=initrd console=ttyS0 quiet mitigations=off nokaslr tsc=reliable lpj=400000 no_timer_check nowatchdog
END
xorriso -as mkisofs -quiet -o "$build/disc.iso" -b isolinux.bin -no-emul-boot -boot-load-size 4 -boot-info-table \
  "$disc" 2>/dev/null

# Linux gives up AVX where it is told of XSAVES or XSAVEC: Bochs states another size for them than it expects.
cat >"$build/bochsrc" <<END
megs: 512
cpu: model=corei7_skylake_x, add_features="avx512bf16 avx512vnni", exclude_features="xsaves xsavec"
cpu: ips=100000000, reset_on_triple_fault=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path="$build/disc.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="$build/serial.txt"
speaker: enabled=0
display_library: nogui
log: $build/bochs.txt
panic: action=fatal
error: action=report
info: action=ignore
END
rm -f "$build/serial.txt"
echo "running; $build/serial.txt tells how far it is"
"$bochs" -q -f "$build/bochsrc" </dev/null >"$build/screen.txt" 2>&1 || true  # powering off counts as a failure
tr -d '\r' <"$build/serial.txt" >"$build/said.txt"
cat "$build/said.txt"

# What Catch sums up, and the instruction set that ran.
counts=$(sed -n 's/^All tests passed (.* in \([0-9]*\) test cases*)$/\1 0/p
  s/^test cases: *\([0-9]*\) |.* \([0-9]*\) failed.*$/\1 \2/p' "$build/said.txt")
all=${counts% *} bad=${counts#* }
[ -n "$counts" ] || all=0 bad=0
# shellcheck disable=SC2016
sh tests/isa/check.sh "$isa" objdump "$build/tests/isa/isa_probe" sh -c 'grep " ran: " "$0"' "$build/said.txt" ||
  bad=$((bad + 1))
all=$((all + 1))
grep -qx 'exit status 0' "$build/said.txt" || [ "$bad" -gt 0 ] || bad=1
echo "$(((all - bad) * 100 / all))% tests passed, $bad tests failed out of $all"
[ "$bad" -eq 0 ]
