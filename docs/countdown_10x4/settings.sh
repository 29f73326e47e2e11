# What plan.md fixes, as run.sh reads it.
task=countdown-10x4
shape=4,128,4,2,32,384   # 858,240 parameters
budgets="460"            # tokens an agent, tried in this order by `run.sh budget`
uncapped=1200            # the limit of `uncapped`: one agent may search everything
drills=docs.countdown_10x4.drills
drilled=$drills:THIRDS,$drills:PAIRS,$drills:PAIRS,$drills:PAIRS
organized=$drills:EVEN,$drills:EVEN,$drills:EVEN,solo:sudoku-4,$drilled,$drilled,$drilled # a fifth of the tokens is drills
searched=$task,$task,$drills:NEAR,sudoku-4,$drilled,$drilled,$drilled
dealt=$task,$task,$task,solo:sudoku-4,$drilled,$drilled,$drilled # the same, dealt in any way
drill_steps=1400
cold_steps=5600
longer_steps="5000 10000" # the first of these at which a cold start meets its rules
any_deal_steps=1000      # of organizers that deal in any way, for the arms free, paper and no-path
alone_steps=1500         # of one agent that may search everything, for the arm uncapped
filled=460               # the longest agent of a demonstration: the first budget
first=0 second=1 third=2 # seeds; the first chooses budget and temperatures, and is what is timed
rl_steps=60 organizer_steps=30 # of GRPO; organizers have half
organizer_rate=3e-5 alone_rate=1e-4 # learning rates of GRPO: of asyncthink and no-cold; of all others
sft=(--batch-tokens 1500 --learning-rate 2e-3 --evaluate-every 250 --save-every 250 --threads "${THREADS:-1}")
grpo=(--questions 8 --drawn 12 --rounds 1 --group-size 8 --minibatches 2 --clip-low 0.2 --clip-high 0.28
    --entropy 1e-3 --temperature 1 --decay 0.2 --eta-weight 0 --complete 0.5 --path-weight 0.4
    --batch-tokens 4096 --cache-tokens 200000 --validate-every 15 --validate-puzzles 200 --save-every 5)
if grep -qs avx512_bf16 /proc/cpuinfo; then grpo+=(--bfloat16-backward); fi # elsewhere it takes longer
heats="0 0.5 1" # temperatures of a sweep
parallel_heats="0.6 0.8 1"
validation=200
budget_puzzles=400
test=600 test_first=1100000 # puzzles, and the seed of the first one: those from 1000000 have been asked
frontier_puzzles=200
frontier_budgets="250 350 400 550"
timed_puzzles=60
if [ -n "${SMOKE:-}" ]; then
    shape=2,64,2,1,32,128
    drill_steps=4 cold_steps=4 longer_steps=4 any_deal_steps=4 alone_steps=4
    rl_steps=2 organizer_steps=2
    sft=(--batch-tokens 1500 --no-bfloat16 --evaluate-every 2 --save-every 2)
    grpo=(--questions 1 --drawn 2 --rounds 1 --group-size 2 --minibatches 1 --entropy 1e-3 --eta-weight 0
        --complete 0.5 --path-weight 0.4 --validate-every 1 --validate-puzzles 2 --save-every 1)
    uncapped=30 budgets="24"
    validation=2 budget_puzzles=2 test=3 frontier_puzzles=2 frontier_budgets="10 20" timed_puzzles=2
fi
