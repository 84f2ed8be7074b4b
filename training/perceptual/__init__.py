"""Perceptual alignment: embeddings whose distances order images as people do who compare two with a third.

AligNet learns what belongs together; this learns what looks alike (Fu et al. 2023, DreamSim and NIGHTS; Sundaram et
al. 2024, "When does perceptual alignment benefit vision representations?"). It helps retrieval, counting and dense
prediction, and often costs some classification.
"""
