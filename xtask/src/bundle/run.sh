#!/usr/bin/env bash
# Runs seqmix's tests, examples and benches on a host with an NVIDIA GPU and its driver; neither Rust
# nor CUDA is needed. `./run.sh` runs everything, `./run.sh tests`, `examples` or `benches` a part.
# Exit status: 0 all passed, 1 something failed or there is no GPU, 2 usage.
# Output also goes to results/, one file a program.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests examples benches)
for part in "${parts[@]}"; do
    case $part in
        tests | examples | benches) ;;
        *) echo "usage: run.sh [tests] [examples] [benches]" >&2; exit 2 ;;
    esac
done

# Every program here refuses to fall back to the emulator: results must be those of the GPU.
export SEQMIX_DRIVER=cuda
export CRITERION_HOME="$PWD/results/criterion"
mkdir -p results
failed=()

# What products are compared with: cuBLAS of a Python wheel, unless the caller chose another one.
if [ -z "${SEQMIX_CUBLAS:-}" ] && command -v python3 >/dev/null; then
    SEQMIX_CUBLAS=$(python3 -c '
import glob, sys
here = lambda folder: glob.glob(glob.escape(folder) + "/nvidia/*/lib/libcublas.so.*[0-9]")
found = [library for folder in sys.path for library in here(folder)]
print(max(found, key=lambda library: int(library.rsplit(".", 1)[1]), default=""))')
    export SEQMIX_CUBLAS
fi

# run NAME PROGRAM ARGUMENT...: returns the program's exit status.
run() {
    local name=$1 start=$SECONDS status
    shift
    echo "== $name"
    "$@" 2>&1 | tee "results/$name.txt"
    status=${PIPESTATUS[0]}
    echo "== $name: exit status $status, $((SECONDS - start)) s"
    return "$status"
}

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv | tee results/gpu.txt
fi
# Also the proof that there is a GPU: it opens the driver and runs one verified problem after another.
if ! run verify bin/examples/verify; then
    echo "run.sh: FAILED: no GPU that works, or wrong numbers on it: see above" >&2
    exit 1
fi

for part in "${parts[@]}"; do
    for program in bin/"$part"/*; do
        name=$(basename "$program")
        case $part/$name in
            examples/verify) ;; # ran already
            examples/replay)
                for case in tests/golden/cases/attention_forward__*.safetensors; do
                    run "replay-$(basename "$case" .safetensors)" "$program" "$case"
                    # 3: the case needs an option that has no kernel yet.
                    case $? in 0 | 3) ;; *) failed+=("replay $case") ;; esac
                done
                ;;
            benches/*) run "bench-$name" "$program" --bench || failed+=("$part/$name") ;;
            *) run "$part-$name" "$program" || failed+=("$part/$name") ;;
        esac
    done
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "run.sh: FAILED: ${failed[*]}" >&2
    exit 1
fi
echo "run.sh: all passed: ${parts[*]}"
