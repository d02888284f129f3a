#!/usr/bin/env bash
# Gets what the duels need: the peers and the models. About 10 GB and an hour on two cores; what is there already is
# left as it is. Wants Python 3.11, a C and C++ compiler and PyPI.
#
#   scripts/bench/setup.sh WORKDIR              a folder outside of the repository
#   MODELS=smollm-135m scripts/bench/setup.sh WORKDIR
#   WITHOUT_AMX=yes scripts/bench/setup.sh WORKDIR   also llama.cpp without AMX: contenders with build=noamx
set -euo pipefail

main() {
    scripts=$(cd "$(dirname "$0")" && pwd)
    mkdir -p "${1:?give the folder in which everything is to be kept}"
    work=$(cd "$1" && pwd)
    cd "$work"
    python=$work/venv/bin/python
    export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TQDM_DISABLE=1
    environment
    llama_cpp
    make_calibrate
    local model
    for model in ${MODELS:-qwen2.5-0.5b smollm-135m}; do
        checkpoint "$model"
        genai "$model"
        optimum "$model"
        gguf "$model"
    done
    echo "everything is there: $work"
}

# Two versions of transformers: Optimum wants 4, the GenAI builder 5.
environment() {
    [ -x "$python" ] || { python3.11 -m venv venv && venv/bin/pip install --quiet -r "$scripts/requirements.txt"; }
    [ -d tf5 ] || venv/bin/pip install --quiet --target tf5 transformers==5.23.0
}

# llama-cpp-python's source package carries llama.cpp's sources (0.3.36: commit 0c1e57098).
llama_cpp() {
    local version=0.3.36
    if [ ! -d src ]; then
        mkdir -p sdist src
        PATH=$work/venv/bin:$PATH venv/bin/pip download --quiet --no-deps --no-build-isolation \
            --no-binary llama-cpp-python -d sdist "llama-cpp-python==$version"
        tar -xf "sdist/llama_cpp_python-$version.tar.gz" -C src
    fi
    sources=$work/src/llama_cpp_python-$version/vendor/llama.cpp
    keep_tile_configuration
    build_llama lbuild -DGGML_NATIVE=ON
    if [ -n "${WITHOUT_AMX:-}" ]; then
        local flags
        mapfile -t flags < <(flags_without_amx)
        build_llama lbuild-noamx -DGGML_NATIVE=OFF "${flags[@]}"
    fi
}

# build_llama FOLDER OPTION...
build_llama() {
    # Neither its pages nor TLS: both would be fetched, and neither is measured.
    [ -e "$1/build.ninja" ] || PATH=$work/venv/bin:$PATH cmake -S "$sources" -B "$1" -G Ninja \
        -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF "${@:2}" -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF >"$1.log"
    PATH=$work/venv/bin:$PATH cmake --build "$1" \
        --target llama-bench llama-batched-bench llama-server llama-quantize >>"$1.log"
}

# What this processor of x86 has, but for AMX.
flags_without_amx() {
    local has option features
    has=" $(grep -m 1 '^flags' /proc/cpuinfo | cut -d : -f 2) "
    while read -r option features; do
        local feature missing=
        for feature in $features; do
            [[ $has == *" $feature "* ]] || missing=$feature
        done
        [ -n "$missing" ] || echo "-DGGML_$option=ON"
    done <<'END'
AVX avx
AVX2 avx2
FMA fma
F16C f16c
BMI2 bmi2
AVX512 avx512f avx512cd avx512bw avx512dq avx512vl
AVX512_VBMI avx512vbmi
AVX512_VNNI avx512_vnni
AVX512_BF16 avx512_bf16
END
}

# GCC 12 believes that _tile_loadconfig reads eight bytes, and leaves out the stores of the other 56: on processors with
# AMX, llama.cpp crashes at its first product. A statement that reads them all keeps them.
keep_tile_configuration() {
    local file=$sources/ggml/src/ggml-cpu/amx/mmq.cpp
    grep -q 'asm volatile' "$file" ||
        sed -i 's/_tile_loadconfig(&tc);/asm volatile("" : : "r"(\&tc) : "memory"); &/' "$file"
}

make_calibrate() {
    cc -O3 -march=native -ffp-contract=fast -pthread "$scripts/calibrate.c" -o calibrate
}

checkpoint() {
    [ -e "models/$1/model.safetensors" ] || "$python" "$scripts/checkpoint.py" "$1" "models/$1"
}

# The layout that keeps keys and values in place. Pruned: the head computes the last position only.
genai() {
    build "$1" int4
    build "$1" fp32
    build "$1" int4 -pruned --extra_options prune_lm_head=true
    [ -e "genai/$1-int8/genai_config.json" ] ||
        "$python" "$scripts/../quantize-int8.py" "genai/$1-fp32" "genai/$1-int8"
}

# build MODEL PRECISION [SUFFIX OPTION...]
build() {
    local out=genai/$1-$2${3:-}
    [ -e "$out/genai_config.json" ] && return
    PYTHONPATH=$work/tf5 "$python" -m onnxruntime_genai.models.builder \
        -i "models/$1" -o "$out" -p "$2" -e cpu -c cache "${@:4}"
}

# The layout that gives new keys and values each step, in full precision and in 4 bits. A program that prefers the
# quantised file finds it in optimum/MODEL; optimum/MODEL-fp32 holds the other alone (hard links: the same file).
optimum() {
    local out=optimum/$1
    [ -e "$out/model.onnx" ] || venv/bin/optimum-cli export onnx -m "models/$1" \
        --task text-generation-with-past --opset 18 "$out"
    [ -e "$out/onnx/model_q4.onnx" ] || "$python" "$scripts/quantize.py" "$out/model.onnx" "$out/onnx/model_q4.onnx"
    [ -d "$out-fp32" ] && return
    mkdir "$out-fp32"
    find "$out" -maxdepth 1 \( -name '*.json' -o -name '*.jinja' -o -name 'model.onnx*' \) -exec ln -t "$out-fp32" {} +
}

gguf() {
    mkdir -p gguf
    [ -e "gguf/$1-f32.gguf" ] || "$python" "$scripts/convert.py" "$sources" "models/$1" "gguf/$1-f32.gguf"
    local form
    for form in Q4_0 Q8_0; do
        [ -e "gguf/$1-$form.gguf" ] ||
            lbuild/bin/llama-quantize "gguf/$1-f32.gguf" "gguf/$1-$form.gguf" "$form" "$(nproc)"
    done
}

main "$@"
