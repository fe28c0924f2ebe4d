"""Audio stages for Hedgerow: PCM and WAV in, resampling, voice activity, speech segments out.

The stages are used by name in a pipeline: `pcm16`, `resample`, `vad-window`, `speech`.
"""
