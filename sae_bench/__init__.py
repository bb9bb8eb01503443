"""Benchmarking and ablation suite for sparse autoencoder architectures."""
