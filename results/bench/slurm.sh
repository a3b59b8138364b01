#!/bin/bash
# results/bench/slurm.sh FOLDER COMMAND...: Debian's Slurm on this machine alone, for as long as COMMAND runs.
#
# Needs root, and `apt-get install slurmctld slurmd slurm-client munge`. One node with this machine's cores, two partitions:
# jobs in `low` give way to those in `high`; they get SIGTERM, 30 seconds, and are queued again. Everything Slurm writes is in
# FOLDER, a new one; the daemons end with COMMAND. Exit status: COMMAND's, or 77 where Slurm cannot run here.
set -u
[ $# -ge 2 ] || { sed -n 2,7p "$0"; exit 2; }
folder=$1; shift
for program in slurmctld slurmd sinfo munged; do
    command -v $program > /dev/null || { echo "skipped: no $program here" >&2; exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: slurmd needs root" >&2; exit 77; }
mkdir "$folder" || exit 2
folder=$(cd "$folder" && pwd) name=$(hostname -s) started=()
stop() { # jobs first: without daemons they would go on
    squeue -h -o %A 2> /dev/null | xargs -r scancel 2> /dev/null
    for _ in $(seq 60); do squeue -h 2> /dev/null | grep -q . || break; sleep 1; done
    kill "${started[@]}" 2> /dev/null; wait "${started[@]}" 2> /dev/null
}
trap stop EXIT
trap 'exit 143' TERM INT
mkdir -p "$folder"/{state,spool,log,munge}
dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 2> /dev/null
chmod 700 "$folder/munge"; chmod 400 "$folder/munge/key"
munged --foreground --force --key-file "$folder/munge/key" --socket "$folder/munge.socket" --pid-file "$folder/munge/pid" \
    --seed-file "$folder/munge/seed" --log-file "$folder/munge/log" &
started+=($!)
cat > "$folder/slurm.conf" << END
ClusterName=one
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
MinJobAge=3600
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=$name Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=$name MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
END
export SLURM_CONF=$folder/slurm.conf
slurmctld -D & started+=($!)
slurmd -D -N "$name" & started+=($!)
for _ in $(seq 60); do
    sinfo -h -o %T 2> /dev/null | grep -q idle && break
    sleep 1
done
sinfo -h -o %T 2> /dev/null | grep -q idle || { echo "skipped: Slurm does not come up; see $folder/log" >&2; tail -5 "$folder"/log/* >&2; exit 77; }
"$@"
