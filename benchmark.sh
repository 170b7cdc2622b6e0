#!/usr/bin/env bash
# Tasks x seeds in one command: a process a run, spread over devices, and a report at the end.
# `bash benchmark.sh --help` has the flags. What is finished is skipped, so the same command
# again goes on where the last one stopped. Statistics, tables and curves are report.py's.
# This is as much as bash should hold: whatever needs more (several machines without Slurm, a queue
# by expected time) is for a Python program in its place.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
[[ $python != */* || $python == /* ]] || python=$PWD/$python # runs start elsewhere

usage() {
    cat <<'EOF'
usage: bash benchmark.sh --tasks SET [flags] [-- flags of the algorithm]

  --tasks SET            paper15, dmc-hard, dmc-all, h1, smoke, or tasks: "dog-run humanoid-walk"
  --algorithm NAME       what learns, a file here without .py: flowrl_jax (default),
                         flowrl_hlgauss_jax or sac_jax
  --seeds N              seeds 1 to N (default 5; smoke: 2); or A-B, such as 6-10
  --preset NAME          preset of the algorithm: auto (default), paper, gpu or cpu
  --out FOLDER           results (default results): runs/, jobs/ with a log each, runs.csv, report;
                         of one algorithm: another one's need another folder
  --devices LIST         GPUs such as 0,1,2, or cpu; auto (default) takes all GPUs, else cpu
  --jobs-per-device J    runs at a time on each device (default 1; smoke: 2); they share its memory
  --slurm                submit an array of jobs with sbatch, and the report after it
  --slurm-args "ARGS"    flags for sbatch, such as "--partition=gpu --gres=gpu:1 --time=24:00:00"
  --dry-run              print the commands, run and write nothing
  --report-only          write runs.csv and the report from what is there
  --help                 this text

Ctrl-C asks the runs to stop and save, and waits for them; a second one stops them at once.
Exit code: 0 all finished, 1 some failed, 2 bad input, 130 or 143 stopped.
EOF
}

die() {
    echo "error: $1" >&2
    exit 2
}

# ------------------------------------------------------------------------------------- task sets
dmc_hard="dog-stand dog-walk dog-trot dog-run humanoid-stand humanoid-walk humanoid-run"
paper15="walker-run walker-stand quadruped-walk humanoid-run humanoid-walk dog-run dog-trot dog-walk
    dog-stand h1-balance_simple h1-balance_hard h1-crawl h1-maze h1-reach h1-sit_hard"
smoke="cartpole-balance walker-walk"
# Long enough to learn a little on a pole; an evaluation every 2,000 steps, so that curves exist.
smoke_flags=(--total-timesteps 8000 --eval-interval 2000 --eval-episodes 4 --hidden-size 64)
smoke_flags+=(--log-interval 2000 --learning-starts 2000 --buffer-size 10000)

# What envs.py has: one line of tasks.
known_tasks() {
    (cd "$here" && "$python" -c 'import envs; print(*envs.task_ids())') ||
        die "PYTHON: '$python' cannot import envs.py; activate the environment first"
}

# Prints the tasks of --tasks, one a line.
expand_tasks() {
    local known task
    case $1 in
        paper15) echo "$paper15" ;;
        dmc-hard) echo "$dmc_hard" ;;
        smoke) echo "$smoke" ;;
        dmc-all) known_tasks | tr ' ' '\n' | grep -v '^h1-' ;;
        h1) known_tasks | tr ' ' '\n' | grep '^h1-' ;;
        *)
            known=" $(known_tasks) " || exit 2
            for task in ${1//,/ }; do
                [[ $task == *:* || $known == *" $task "* ]] ||
                    die "--tasks: '$task' is no task and no set; python envs.py lists the tasks"
            done
            echo "${1//,/ }"
            ;;
    esac | tr -s ' \n' '\n' | awk 'NF && !seen[$0]++' # each once
}

# ------------------------------------------------------------------------------------ the command
tasks="" algorithm=flowrl_jax seeds="" preset=auto out=results devices=auto per_device=""
slurm=0 slurm_args="" dry_run=0 report_only=0 no_report=0 extra=()
value() { # FLAG REST...: the flag's value
    [[ $# -ge 2 && -n $2 && $2 != --* ]] || die "$1: needs a value"
    printf '%s' "$2"
}
while [[ $# -gt 0 ]]; do
    case $1 in
        --tasks) tasks=$(value "$@") ;;
        --algorithm) algorithm=$(value "$@") ;;
        --seeds) seeds=$(value "$@") ;;
        --preset) preset=$(value "$@") ;;
        --out) out=$(value "$@") ;;
        --devices) devices=$(value "$@") ;;
        --jobs-per-device) per_device=$(value "$@") ;;
        --slurm-args) # its value begins with --
            [[ $# -ge 2 ]] || die "$1: needs a value"
            slurm_args=$2
            ;;
        --slurm) slurm=1 ;;
        --dry-run) dry_run=1 ;;
        --report-only) report_only=1 ;;
        --no-report) no_report=1 ;; # of an array's jobs: the report follows them
        --help | -h) usage && exit 0 ;;
        --)
            shift
            extra=("$@")
            break
            ;;
        *) die "$1: no such flag; flags of the algorithm go after --" ;;
    esac
    case $1 in
        --slurm | --dry-run | --report-only | --no-report) shift ;;
        *) shift 2 ;;
    esac
done

[[ ${BASH_VERSINFO[0]}${BASH_VERSINFO[1]} -ge 51 ]] || die "bash: needs 5.1 or newer"
[[ -n $tasks ]] || die "--tasks: needed; a set such as smoke, or tasks"
# What learns hands itself to the harness by that name; other programs here do not.
if [[ ! $algorithm =~ ^[a-z0-9_]+$ ]] || ! grep -qs '^ALGORITHM = ' "$here/$algorithm.py"; then
    die "--algorithm: '$algorithm' is none; flowrl_jax, flowrl_hlgauss_jax, sac_jax are"
fi
if [[ $tasks == smoke ]]; then
    : "${seeds:=2}" "${per_device:=2}"
    [[ $preset != auto ]] || preset=cpu
    extra=("${smoke_flags[@]}" "${extra[@]}")
fi
: "${seeds:=5}" "${per_device:=1}"
[[ $seeds =~ ^[1-9][0-9]{0,5}$ ]] && seeds=1-$seeds
[[ $seeds =~ ^([0-9]{1,9})-([0-9]{1,9})$ ]] || die "--seeds: needs a number or A-B, got '$seeds'"
first=$((10#${BASH_REMATCH[1]})) last=$((10#${BASH_REMATCH[2]}))
((first <= last)) || die "--seeds: $seeds goes backwards"
((last - first < 100000)) || die "--seeds: $seeds are too many"
[[ $per_device =~ ^[1-9][0-9]?$ ]] || die "--jobs-per-device: needs 1 to 99, got '$per_device'"
[[ $preset =~ ^(auto|paper|gpu|cpu)$ ]] || die "--preset: '$preset' is not auto, paper, gpu or cpu"
[[ -z $slurm_args || $slurm == 1 ]] || die "--slurm-args: needs --slurm"
if ((slurm && !dry_run)); then
    command -v sbatch >/dev/null || die "--slurm: there is no sbatch here"
fi
for word in "${extra[@]}"; do
    flag=${word%%=*}
    case ${flag//_/-} in
        --env-id | --seed | --num-seeds | --runs-dir | --preset | --resume | --evaluate)
            die "${word%%=*}: is set by benchmark.sh, and cannot stand after --"
            ;;
    esac
done
[[ $out == / ]] || out=${out%/}
[[ ! -e $out || -d $out ]] || die "--out: '$out' is a file"
if [[ $devices == auto ]]; then
    devices=""
    if [[ -v CUDA_VISIBLE_DEVICES ]]; then # also where it is empty: no GPU is wanted
        devices=$CUDA_VISIBLE_DEVICES
    elif command -v nvidia-smi >/dev/null; then
        devices=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd,) || true
    fi
    devices=${devices:-cpu}
fi
device='([0-9]+|(GPU|MIG)-[A-Za-z0-9/-]+)'
[[ $devices == cpu || $devices =~ ^$device(,$device)*$ ]] ||
    die "--devices: needs cpu or a list such as 0,1, got '$devices'"
[[ $devices != cpu || $preset != gpu ]] ||
    echo "note: preset gpu on a CPU: its environments, batches and networks take weeks there" >&2
mapfile -t task_list < <(expand_tasks "$tasks") && wait $! || exit 2
((${#task_list[@]})) || die "--tasks: '$tasks' names no task"
help=""
if ((!report_only)); then
    help=$(cd "$here" && "$python" "$algorithm.py" --help 2>&1) ||
        die "PYTHON: '$python' cannot run $algorithm.py; activate the environment first"
    for word in "${extra[@]}"; do
        flag=${word%%=*}
        [[ $word != --* || $help == *"${flag//_/-}"[\ ,]* ]] ||
            die "${word%%=*}: $algorithm.py has no such flag"
    done
    # Their values too, before anything is made: a folder is of one setting.
    wrong=$(cd "$here" && "$python" -m harness.check "$algorithm" --preset "$preset" "${extra[@]}" 2>&1 | tail -n 1) ||
        die "${wrong#error: }"
fi
((!report_only)) || [[ -f $out/jobs.txt ]] || die "--out: '$out' holds no runs to report on"
can_resume=0
[[ $help == *--resume* ]] && can_resume=1

jobs=() # "TASK SEED"
for task in "${task_list[@]}"; do
    for ((seed = first; seed <= last; seed++)); do jobs+=("$task $seed"); done
done
settings="--algorithm $algorithm --preset $preset ${extra[*]}"
if [[ -f $out/settings.txt ]]; then
    had=$(<"$out/settings.txt")
    [[ $had == --algorithm* ]] || had="--algorithm flowrl_jax $had" # of before there was another
    [[ $settings == "$had" || -z $(compgen -G "$out/runs/*") ]] ||
        die "--out: '$out' holds runs of $had; choose another folder for these"
fi

# ------------------------------------------------------------------------------ files of one job
job_file() { # TASK SEED: name of its files, as runs.py names folders
    printf '%s/jobs/%s__%s' "$out" "${1//[^A-Za-z0-9_.=+-]/-}" "$2"
}

newest_folder() { # TASK SEED: its last run folder, or nothing
    local found=("$out/runs/${1//[^A-Za-z0-9_.=+-]/-}__${algorithm}__$2__"*/config.json)
    [[ ! -f ${found[-1]} ]] || dirname "${found[-1]}"
}

config_value() { # KEY FOLDER: a string or a number of config.json, which has a key a line
    sed -nE "s/^ *\"$1\": \"?([^\",]*)\"?,?\$/\\1/p" "$2/config.json" | head -n 1
}

is_finished() { # TASK SEED: whether any of its folders says so
    local found=("$out/runs/${1//[^A-Za-z0-9_.=+-]/-}__${algorithm}__$2__"*/config.json)
    grep -qs '^ *"status": "finished"' "${found[@]}"
}

has_checkpoint() { # FOLDER
    compgen -G "$1/checkpoints/[0-9]*" >/dev/null
}

# FOLDER of a failed run: whether it has checkpoints, and what failed was not what was learned.
can_go_on() {
    has_checkpoint "$1" && ! grep -q '"error": "FloatingPointError' "$1/config.json"
}

# TASK SEED FRESH: sets `arguments` of the algorithm, and `how` they begin.
choose_arguments() {
    local folder status
    folder=$(newest_folder "$1" "$2") how="new run"
    arguments=(--env-id "$1" --seed "$2" --preset "$preset" --runs-dir "$out/runs" "${extra[@]}")
    [[ -n $folder ]] || return 0
    status=$(config_value status "$folder")
    if [[ $3 == 1 ]] || { [[ $status == failed ]] && ! can_go_on "$folder"; }; then
        how="new run after one that failed"
    elif ((can_resume)) && ! has_checkpoint "$folder"; then
        how="new run: $folder ended before its first checkpoint"
    elif ((can_resume)); then
        arguments=(--resume "$folder") how="resumes $folder"
    else
        how="new run: $folder is half done, but this $algorithm.py has no --resume"
    fi
}

quoted() { # a cell of a CSV, on one line
    printf '"%s"' "$(tr -d '\r' <<<"$1" | tr '\n"' " '" | sed 's/ *$//')"
}

write_row() { # TASK SEED ATTEMPT EXIT_CODE SECONDS STARTED
    local file folder="" commit="" versions=",," error=""
    file=$(job_file "$1" "$2")
    folder=$(tac "$file.log" | sed -nE '/^=== attempt/q; s/^run folder (.*)/\1/p' | head -n 1)
    [[ -n $folder || $how_last != resumes* ]] || folder=${how_last#resumes }
    commit=$(git -C "$here" rev-parse HEAD 2>/dev/null || true)
    if [[ -f $folder/config.json ]]; then
        commit=$(config_value commit "$folder")
        [[ $(config_value dirty "$folder") != true ]] || commit+="+"
        versions="$(config_value python "$folder"),$(config_value jax "$folder")"
        versions+=",$(config_value mujoco "$folder")"
    fi
    [[ $4 == 0 ]] || error=$(grep -v '^[[:space:]]*$' "$file.log" | tail -n 1 | cut -c 1-300)
    [[ -z $folder ]] || folder=runs/$(basename "$folder")
    echo "$1,$2,$3,$4,$commit,$versions,$5,$6,$(quoted "$folder"),$(quoted "$error")" >>"$file.csv"
}

# runs.csv: a row for every attempt, and one for every job that had none. Array jobs share it.
write_ledger() {
    local task seed file
    {
        flock 8
        {
            echo "task,seed,attempt,exit_code,git_commit,python,jax,mujoco,seconds,started,folder,error"
            while read -r task seed; do
                file=$(job_file "$task" "$seed")
                if [[ -f $file.csv ]]; then cat "$file.csv"; else echo "$task,$seed,,,,,,,,,,not started"; fi
            done <"$out/jobs.txt"
        } >"$out/runs.csv.partial"
        mv "$out/runs.csv.partial" "$out/runs.csv"
    } 8>"$out/jobs/.ledger.lock"
}

# ------------------------------------------------------------------------- devices and their share
IFS=, read -ra device_list <<<"$devices"
slots=$((${#device_list[@]} * per_device))

own_cores() { # the cores that this process may use, a line each
    local range
    for range in $(sed -nE 's/^Cpus_allowed_list:\s*//p' /proc/self/status | tr ',' ' '); do
        seq "${range%-*}" "${range#*-}"
    done
}
mapfile -t cores < <(own_cores)

# SLOT: sets `environment`, what a run there gets. A run on a CPU shared by J gets 1/J of the cores.
choose_environment() {
    local device=${device_list[$1 / per_device]} part=$(($1 % per_device)) share
    environment=(env XLA_PYTHON_CLIENT_MEM_FRACTION="$(awk "BEGIN{printf \"%.3f\", 0.9/$per_device}")")
    if [[ $device == cpu ]]; then
        environment=(env JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=)
        share=$((${#cores[@]} / per_device))
        if ((per_device > 1 && share > 0)); then
            local mine=("${cores[@]:part*share:share}")
            environment+=(taskset -c "$(IFS=,; echo "${mine[*]}")")
        fi
    else
        environment+=(CUDA_VISIBLE_DEVICES="$device")
    fi
}

# ------------------------------------------------------------------------------------ only to show
slurm_script() {
    local flag
    echo "#!/usr/bin/env bash"
    echo "#SBATCH --job-name=$algorithm --array=1-${#jobs[@]} --requeue"
    echo "#SBATCH --output=$out/jobs/slurm-%A_%a.log"
    echo "#SBATCH --signal=B:TERM@180"
    for flag in $slurm_args; do echo "#SBATCH $flag"; done
    echo "# One job of the array is one run. TERM comes before the time limit: the run saves."
    printf 'jobs=('
    printf '%q ' "${jobs[@]}"
    # shellcheck disable=SC2016 # for the array's job to expand
    printf ')\nread -r task seed <<<"${jobs[SLURM_ARRAY_TASK_ID - 1]}"\n'
    printf 'export PYTHON=%q\n' "$python"
    printf 'exec '
    printf '%q ' bash "$here/benchmark.sh" --algorithm "$algorithm" --preset "$preset" --out "$out"
    # shellcheck disable=SC2016 # for the array's job to expand
    printf '%s ' --tasks '"$task"' --seeds '"$seed-$seed"' --no-report --
    printf '%q ' "${extra[@]}"
    echo
}

if ((dry_run)); then
    if ((slurm)); then
        slurm_script
        exit 0
    fi
    for index in "${!jobs[@]}"; do
        read -r task seed <<<"${jobs[index]}"
        if is_finished "$task" "$seed"; then
            echo "# finished: $task seed $seed"
            continue
        fi
        choose_arguments "$task" "$seed" 0
        choose_environment $((index % slots))
        printf '%q ' "${environment[@]}" "$python" "$algorithm.py" "${arguments[@]}"
        echo "# $how"
    done
    exit 0
fi

# ----------------------------------------------------------------------------------------- to run
trap 'echo "error: benchmark.sh, line $LINENO: $BASH_COMMAND" >&2' ERR
mkdir -p "$out/jobs" "$out/runs" 2>/dev/null || die "--out: cannot make folders in '$out'"
out=$(cd "$out" && pwd)
echo "$settings" >"$out/settings.txt"
touch "$out/jobs.txt"
{
    flock 8
    printf '%s\n' "${jobs[@]}" | cat - "$out/jobs.txt" | sort -u >"$out/jobs.txt.partial"
    mv "$out/jobs.txt.partial" "$out/jobs.txt"
} 8>"$out/jobs/.ledger.lock"
write_ledger

report() {
    (cd "$here" && "$python" report.py "$out" --out "$out/report" --html "$out/report.html") ||
        echo "report.py failed; the runs are untouched" >&2
}

list_failures() { # prints them, and returns 1 if there are any
    local task seed job file why failures=0
    for job in "${jobs[@]}"; do
        read -r task seed <<<"$job"
        is_finished "$task" "$seed" && continue
        ((failures++)) || echo "not finished:"
        file=$(job_file "$task" "$seed") why="not started"
        [[ ! -f $file.csv ]] || why=$(tail -n 1 "$file.csv" | sed -E 's/.*,"([^"]*)"$/\1/')
        echo "  $task seed $seed: $why (log: $file.log)"
    done
    ((failures == 0))
}

if ((slurm)); then
    slurm_script >"$out/array.sbatch"
    number=$(sbatch --parsable "$out/array.sbatch") || die "--slurm: sbatch refused $out/array.sbatch"
    number=${number%%;*}
    follow=$(printf '%q ' env PYTHON="$python" bash "$here/benchmark.sh" --algorithm "$algorithm" \
        --preset "$preset" --tasks "${task_list[*]}" --seeds "$seeds" --out "$out" \
        --report-only -- "${extra[@]}")
    sbatch --parsable --job-name="$algorithm-report" --dependency="afterany:$number" \
        --output="$out/jobs/slurm-report.log" --wrap "$follow" >/dev/null ||
        die "--slurm: sbatch took the array $number, but not the report"
    echo "submitted ${#jobs[@]} runs as array $number, and the report after it: $out/array.sbatch"
    exit 0
fi
if ((report_only)); then
    report
    list_failures || exit 1
    exit 0
fi

# A JAX that cannot use a GPU takes the CPU without an error, for weeks.
if [[ $devices != cpu ]]; then
    usable=$(cd "$here" && CUDA_VISIBLE_DEVICES="$devices" "$python" -c \
        'from harness import machine; print(machine.accelerators())' | tail -n 1) || usable=0
    ((usable == ${#device_list[@]})) ||
        die "--devices: of $devices JAX can use $usable; install its package for them, or use --devices cpu"
fi

declare -A job_of=() slot_of=() began_of=() started_of=() attempt_of=() how_of=() # by process id
queue=() free=() stopping=0 total=0 ended=0 spent=0 timed=0
for job in "${jobs[@]}"; do
    read -r task seed <<<"$job"
    if is_finished "$task" "$seed"; then
        echo "finished already: $task seed $seed"
    else
        queue+=("$task $seed 1 0") # task, seed, attempt, whether it must be a new run
    fi
done
total=${#queue[@]}
for ((slot = slots - 1; slot >= 0; slot--)); do free+=("$slot"); done

clock() { printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 / 60 % 60)) $(($1 % 60)); }

stop() { # SIGNAL'S NUMBER
    stopping=$((128 + $1))
    queue=()
    ((${#job_of[@]} == 0)) || kill -TERM "${!job_of[@]}" 2>/dev/null || true
    echo "stopping: ${#job_of[@]} runs end after the present chunk and save" >&2
}
trap 'stop 2' INT
trap 'stop 15' TERM

# TASK SEED ATTEMPT FRESH, on the last free slot. The run leads a session of its own, so that a
# terminal's Ctrl-C reaches it once, as TERM from here. It holds a lock: no two of one job at a time.
start() {
    local slot=${free[-1]} file arguments how environment
    unset 'free[-1]'
    file=$(job_file "$1" "$2")
    choose_arguments "$1" "$2" "$4"
    choose_environment "$slot"
    echo "=== attempt $3, $(date -Is): $how" >>"$file.log"
    (
        exec 9>"$file.lock"
        flock -n 9 || { echo "another process runs this job" && exit 75; }
        cd "$here"
        exec setsid "${environment[@]}" "$python" -u "$algorithm.py" "${arguments[@]}"
    ) </dev/null >>"$file.log" 2>&1 &
    job_of[$!]="$1 $2" slot_of[$!]=$slot began_of[$!]=$SECONDS attempt_of[$!]=$3 how_of[$!]=$how
    started_of[$!]=$(date -Is)
    echo "started $1 seed $2 on ${device_list[slot / per_device]} ($how); log $file.log"
}

# PID EXIT_CODE: writes it down, and queues a second attempt.
finish() {
    local task seed attempt=${attempt_of[$1]} took=$((SECONDS - began_of[$1])) note="" how_last=${how_of[$1]}
    read -r task seed <<<"${job_of[$1]}"
    write_row "$task" "$seed" "$attempt" "$2" "$took" "${started_of[$1]}"
    free+=("${slot_of[$1]}")
    unset "job_of[$1]"
    if (($2 == 0)) || is_finished "$task" "$seed"; then
        spent=$((spent + took)) timed=$((timed + 1))
    elif ((!stopping && attempt < 2)) && [[ $2 != 75 && ($2 != 2 || $how_last == resumes*) ]]; then
        # Bad input stays bad. What could not be resumed is begun anew.
        fresh=0
        [[ $2 != 2 ]] || fresh=1
        queue+=("$task $seed 2 $fresh")
        ended=$((ended - 1)) note=", tried once more"
    fi
    ended=$((ended + 1))
    write_ledger
    local left=$((total - ended)) eta=unknown
    ((timed == 0)) || eta=$(clock $((spent * left / (timed * slots))))
    echo "[$ended/$total] $task seed $seed: exit code $2 after $(clock "$took")$note; about $eta left"
}

while ((${#queue[@]} || ${#job_of[@]})); do
    while ((${#queue[@]} && ${#free[@]})); do
        read -r task seed attempt fresh <<<"${queue[0]}"
        queue=("${queue[@]:1}")
        start "$task" "$seed" "$attempt" "$fresh"
    done
    # Which one ended, `wait -n` cannot be relied on to say: it knows none that ended meanwhile.
    wait -n "${!job_of[@]}" 2>/dev/null || true
    for pid in "${!job_of[@]}"; do
        kill -0 "$pid" 2>/dev/null && continue
        code=0
        wait "$pid" 2>/dev/null || code=$?
        finish "$pid" "$code"
    done
done

if ((stopping)); then
    echo "stopped; the same command goes on from here" >&2
    exit "$stopping"
fi
((no_report)) || report
list_failures || exit 1
echo "all ${#jobs[@]} runs finished: $out"
