"""What runs episodes on this machine: the sampler, its scheduler and agents, prompt heads, drawing, detokenizing."""
