"""From what lies on a disk to batches.

audio_lists.py   lists of audio as other programs write them
headers.py       files -> their headers, read side by side and kept
clip_table.py    clips by the ten million, in columns
clips.py         folders, lists and files -> measured clips
batches.py       clips -> length-bucketed batches
corpora/         corpora in their published layouts, and own data in manifests, as tables
tasks.py         corpora -> classes, splits and trials to fine-tune by
task_batches.py  tasks -> batches that alternate between tasks
features.py      decoded waveforms and states of a frozen encoder, kept on disk
"""
