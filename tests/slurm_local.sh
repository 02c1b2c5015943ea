#!/bin/sh
# Slurm on this machine alone, for a test: a controller and some nodes, all state in one folder. Needs root, Slurm, MUNGE.
#
#   slurm_local.sh up FOLDER NODES      slurm_local.sh down FOLDER
set -eu
folder=$2
case $1 in
up)
  mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
  chmod 0755 "$folder" "$folder/munge"
  # A MUNGE of its own, so that the machine's is neither needed nor touched.
  dd if=/dev/urandom of="$folder/munge/key" bs=1 count=256 2>/dev/null
  chmod 0400 "$folder/munge/key"
  chmod 0711 "$folder/munge"
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --seed-file="$folder/munge/seed" --log-file="$folder/munge/log"
  host=$(uname -n)
  host=${host%%.*}
  base=$((20000 + $$ % 20000))
  {
    cat <<C
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
MpiDefault=none
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=3
C
    for i in $(seq "$3"); do
      echo "NodeName=tn$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + i)) CPUs=2 RealMemory=500 State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4"
  } >"$folder/slurm.conf"
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld -f "$SLURM_CONF"
  for i in $(seq "$3"); do
    mkdir -p "$folder/spool/tn$i"
    slurmd -f "$SLURM_CONF" -N "tn$i"
  done
  for _ in $(seq 40); do
    if sinfo -h -o '%D %T' 2>/dev/null | grep -q "^$3 idle"; then exit 0; fi
    sleep 0.5
  done
  sinfo >&2
  exit 1
  ;;
down)
  for file in "$folder"/*.pid; do
    [ -r "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
  ;;
esac
