# What plan.md fixes, as run.sh reads it.
task=countdown-10x4
shape=6,192,6,2,32,512   # 2.5M parameters
budgets="460 430 490"    # tokens an agent, tried in this order by `run.sh budget`
uncapped=1200            # the limit of `uncapped`: one agent may search everything
drills=docs.countdown_10x4.drills
searched=$task,$task,$drills:NEAR,$drills:NEAR,sudoku-4 # 22% of the tokens are PAIRS and THIRDS
for _ in 1 2 3 4; do searched+=,$drills:PAIRS,$drills:THIRDS; done
organized=$task,$task,$task,solo:sudoku-4
evenly=$drills:EVEN,$drills:EVEN,$drills:EVEN,$drills:EVEN,solo:sudoku-4
drill_steps=1500
search_steps=4000
cold_steps=3000
fit_steps=2000
organize_steps=1500
settle_steps=5000
even_steps="2000 5000 10000" # the first of these at which a cold start meets its rules
plain_steps=5000         # of one agent's searches, for the arm no-cold
alone_steps=1500         # of one agent that may search everything, for the arm uncapped
fit=410                  # the longest agent of the parts fit, organize and settle
filled=460               # of the part even: the first budget
first=1 second=0 third=2   # seeds; the first chooses budget and temperatures, and is what is timed
rl_steps=60
organizer_rate=3e-5 alone_rate=1e-4 # learning rates of GRPO: of asyncthink; of parallel and sequential
sft=(--batch-tokens 1500 --learning-rate 1e-3 --evaluate-every 500 --save-every 250)
grpo=(--questions 8 --drawn 12 --rounds 1 --group-size 8 --minibatches 2 --clip-low 0.2 --clip-high 0.28
    --entropy 1e-3 --temperature 1 --decay 0.2 --eta-weight 0 --complete 0.5 --path-weight 0.4
    --batch-tokens 4096 --cache-tokens 200000 --validate-every 15 --validate-puzzles 200 --save-every 5)
if grep -qs avx512_bf16 /proc/cpuinfo; then grpo+=(--bfloat16-backward); fi # elsewhere it takes longer
heats="0 0.3 0.6 0.8 1" # temperatures of a sweep
parallel_heats="0.6 0.8 1 1.2"
validation=200
budget_puzzles=400
test=600
frontier_puzzles=300
frontier_budgets="200 250 300 350 450 550"
timed_puzzles=60
if [ -n "${SMOKE:-}" ]; then
    shape=2,64,2,1,32,128
    drill_steps=4
    search_steps=4
    cold_steps=4
    fit_steps=4
    organize_steps=4
    settle_steps=4 even_steps=4 plain_steps=4 alone_steps=4
    rl_steps=2
    sft=(--batch-tokens 1500 --no-bfloat16 --evaluate-every 2 --save-every 2)
    grpo=(--questions 1 --drawn 2 --rounds 1 --group-size 2 --minibatches 1 --entropy 1e-3 --eta-weight 0
        --complete 0.5 --path-weight 0.4 --validate-every 1 --validate-puzzles 2 --save-every 1)
    uncapped=30 budgets="24"
    validation=2 budget_puzzles=2 test=3 frontier_puzzles=2 frontier_budgets="10 20" timed_puzzles=2
fi
