#!/bin/bash
# results/bench/slurm.sh FOLDER results/bench/slurm_compare.sh OUT: a rate search and a comparison of two recipes as jobs of
# arrays on a real Slurm, each job two processes; the same command again has nothing left to do. OUT: a new folder.
set -eu
out=$1 here=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH=$here:$here/tests STAR_CACHE=$out/cache
mkdir "$out"
python -c "
import pathlib, sys, tiny_corpus, tiny_runs
out = pathlib.Path(sys.argv[1])
tiny_corpus.make(out / 'data')
tiny_runs.write_audio(out / 'audio')" "$out"
run() {
    python -m star_upstream compare star_mini "$here/results/compare/recipes/frames.yaml" data.train="$out/audio" data.min_seconds=0.4 data.workers=0 \
        data.max_seconds=3 data.batch_seconds=4 \
        training.devices=2 training.accelerator=cpu training.precision=32 --teacher star_mini_teacher --parameters 300000 --updates 4 \
        --search-rates 1e-3,2e-3 --search-updates 2 --tasks ks --data "$out/data" --steps 2 --out "$out/compared" \
        --launcher submitit --cluster slurm --slurm time=20
}
run 2> >(tee "$out/first" >&2)
[ -s "$out/compared/comparison.json" ] && [ "$(ls "$out"/compared/scores/*/ks.json | wc -l)" = 2 ]
grep -q submitted "$out/first"
run 2> >(tee "$out/second" >&2)
grep -q submitted "$out/second" && { echo "the second time submitted jobs again"; exit 1; }
echo "as it should be"
