"""Runs episodes on this machine: sampler, scheduler, agents, cached prompt prefixes, drawing, detokenizing."""
