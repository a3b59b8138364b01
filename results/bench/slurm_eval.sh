#!/bin/bash
# results/bench/slurm.sh FOLDER results/bench/slurm_eval.sh OUT: two small tasks as jobs of an array on a real Slurm; one is
# killed, which the command must say (exit 1), and the same command again must submit that one alone. OUT: a new folder.
set -eu
out=$1 here=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH=$here:$here/tests STAR_CACHE=$out/cache HOLD=$out/hold
mkdir "$out"
python -c "import pathlib, sys, tiny_corpus; tiny_corpus.make(pathlib.Path(sys.argv[1]))" "$out/data"
run() {
    python -m eval run --upstream test_cluster:holding --tasks ks,sid --data "$out/data" --steps 2 --out "$out/scores" \
        --launcher submitit --cluster slurm --slurm time=10
}
touch "$HOLD"
(until grep -q . "$HOLD"; do sleep 0.2; done; kill -9 "$(cat "$HOLD")") &
status=0; run || status=$?
[ $status = 1 ] && [ -f "$out/scores/ks.json" ] && [ ! -f "$out/scores/sid.json" ] || { echo "first: exit $status"; exit 1; }
rm "$HOLD"
run 2> >(tee "$out/second" >&2)
grep -q "submitted, a job each: sid;" "$out/second" && echo "as it should be"
