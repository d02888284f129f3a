#!/usr/bin/env bash
# Gets ONNX Runtime's shared library and prints its path; does nothing when it is there and whole.
#
# muster looks in this folder by itself. The library comes out of PyPI's wheel, because package indexes and their
# mirrors are reachable from more places than download sites; any Python will do, for nothing in the wheel is run.
set -euo pipefail

version=1.31.1
case "$(uname -s)-$(uname -m)" in
    Linux-x86_64)
        platform=manylinux_2_28_x86_64 member=libonnxruntime.so.$version library=libonnxruntime.so
        wheel_sum=1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536
        library_sum=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3
        ;;
    Linux-aarch64)
        platform=manylinux_2_28_aarch64 member=libonnxruntime.so.$version library=libonnxruntime.so
        wheel_sum=0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc
        library_sum=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467
        ;;
    Darwin-arm64)
        platform=macosx_14_0_arm64 member=libonnxruntime.$version.dylib library=libonnxruntime.dylib
        wheel_sum=96dd2564b10ea7153ad9c207e7cd8e5917cb3ba521e0e0a62ac03486fdc8d56c
        library_sum=d586cbe89effc085a09d3341b3cfbd5c322517f9d397aeb20814af21433f2b36
        ;;
    *)
        echo "no wheel of ONNX Runtime is pinned for $(uname -s) on $(uname -m); name a library of your own in ORT_DYLIB_PATH" >&2
        exit 1
        ;;
esac
folder="${XDG_CACHE_HOME:-$HOME/.cache}/muster/onnxruntime/$version"

main() {
    if [ "$(sum_of "$folder/$library")" != "$library_sum" ]; then
        need_pip
        mkdir -p "$folder"
        # Beside the goal, so that every mv below is a rename: nobody ever sees half a file.
        temporary=$(mktemp -d "$folder/.fetch.XXXXXX")
        trap 'rm -rf "$temporary"' EXIT
        download
        unpack
    fi
    echo "$folder/$library"
}

need_pip() {
    command -v python3 >/dev/null ||
        fail "python3 is not installed (Debian, Ubuntu: apt-get install python3 python3-pip python3-venv)"
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "python3 has no pip (Debian, Ubuntu: apt-get install python3-pip python3-venv; elsewhere: python3 -m ensurepip)"
}

download() {
    echo "getting ONNX Runtime $version for $platform" >&2
    # The Python tag is pinned too: it decides which wheel, and so which checksum.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version 3.12 --abi cp312 --platform "$platform" \
        --dest "$temporary" "onnxruntime==$version" >&2 ||
        fail "pip could not get onnxruntime==$version; its own message is above"
    wheel=$(echo "$temporary"/*.whl)
    [ "$(sum_of "$wheel")" = "$wheel_sum" ] ||
        fail "$(basename "$wheel") has sha256 $(sum_of "$wheel"), not $wheel_sum as pinned here"
}

unpack() {
    python3 -m zipfile -e "$wheel" "$temporary"
    for licence in LICENSE ThirdPartyNotices.txt; do
        mv "$temporary/onnxruntime/$licence" "$folder/$licence"
    done
    # The library last: where it is, everything is.
    mv "$temporary/onnxruntime/capi/$member" "$folder/$library"
}

# Linux has sha256sum, macOS has shasum. Prints nothing for a file that is not there.
sum_of() {
    [ -f "$1" ] || return 0
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

fail() {
    echo "fetch-onnxruntime: $1" >&2
    exit 1
}

main
