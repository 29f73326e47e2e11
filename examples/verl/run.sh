#!/usr/bin/env bash
# GRPO on countdown with verl's v1 trainer and vLLM. MODEL and the other variables can be set; more overrides go behind.
set -euo pipefail
cd "$(dirname "$0")"

MODEL=${MODEL:-Qwen/Qwen2.5-1.5B-Instruct}
DATA=${DATA:-data/countdown}
GPUS=${GPUS:-1}
PROMPT=${PROMPT:-1024}     # tokens of the opening prompt, instructions included
RESPONSE=${RESPONSE:-1536} # tokens that may follow it in one context

[ -e "$DATA/train.parquet" ] || python make_data.py countdown "$DATA"

exec python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    algorithm.use_kl_in_reward=False \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    data.train_batch_size=64 \
    data.max_prompt_length="$PROMPT" \
    data.max_response_length="$RESPONSE" \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.calculate_log_probs=True \
    actor_rollout_ref.rollout.enable_prefix_caching=True \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=16384 \
    actor_rollout_ref.rollout.agent.agent_loop_config_path="$PWD/agent_loops.yaml" \
    actor_rollout_ref.rollout.agent.default_agent_loop=asyncthink \
    trainer.n_gpus_per_node="$GPUS" \
    trainer.nnodes=1 \
    trainer.total_epochs=1 \
    trainer.test_freq=10 \
    trainer.save_freq=50 \
    trainer.logger='["console"]' \
    trainer.project_name=asyncthink \
    trainer.experiment_name=countdown \
    "$@"
