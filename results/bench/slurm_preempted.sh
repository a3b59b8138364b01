#!/bin/bash
# results/bench/slurm.sh FOLDER results/bench/slurm_preempted.sh AUDIO: a training that gives way to another job under Slurm, and the
# same without Slurm; both must end with the same weights and the same log, but for its times.
set -eu
audio=$(realpath "$1") folder=$(dirname "$SLURM_CONF") cores=$(nproc)
star() { python -m star_upstream "$@"; }
words=(distill star_mini "data.train=$audio" data.max_seconds=8 data.batch_seconds=8 data.workers=0 training.minutes=null training.updates=40
    training.precision=32 training.log_every=1 training.validate_every=20 training.save_every=1000 training.accelerator=cpu)
export OMP_NUM_THREADS=1
cat > "$folder/job.sh" << END
#!/bin/bash
#SBATCH --job-name=star --partition=low --cpus-per-task=$cores --requeue --open-mode=append --output=$folder/job.log
srun python -m star_upstream ${words[*]} --out $folder/slurm
# a run that gave way ended in order, with status 0: it is queued again until it is whole
[ -f $folder/slurm/done.json ] || scontrol requeue \$SLURM_JOB_ID
END
job=$(sbatch --parsable "$folder/job.sh")
rows() { cat "$folder/slurm/log.csv" 2> /dev/null | wc -l; }
until [ "$(rows)" -gt 8 ]; do squeue -h -j "$job" | grep -q . || { cat "$folder/job.log"; exit 1; }; sleep 0.5; done
echo "given way after $(rows) lines of the log" >&2
sbatch --wait --partition=high --cpus-per-task="$cores" --output=/dev/null --wrap "sleep 3" > /dev/null
until [ -f "$folder/slurm/done.json" ]; do squeue -h -j "$job" | grep -q . || { cat "$folder/job.log"; exit 1; }; sleep 1; done
star "${words[@]}" --out "$folder/whole" 2> /dev/null > /dev/null
grep -h "resume\|goes on\|started" "$folder/job.log" | cut -c1-150 >&2
python - "$folder" << 'END'
import csv, hashlib, sys
from pathlib import Path

runs = [Path(sys.argv[1]) / name for name in ("slurm", "whole")]
weights = [hashlib.sha256((run / "last" / "model.safetensors").read_bytes()).hexdigest() for run in runs]
logs = [[(r["update"], r["train/loss"], r["audio_crc32"]) for r in csv.DictReader((run / "log.csv").open())] for run in runs]
assert weights[0] == weights[1] and logs[0] == logs[1], (weights, logs)
print(f"equal: weights {weights[0][:12]}, {len(logs[0])} lines of the log")
END
