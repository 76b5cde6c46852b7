"""Mixtures of public data sets for the stages, in place of the reference's, which are names without entries."""

ALIGN = "cc3m_595k"
STAGE1_5 = "sharegpt4v_pretrain"
PRETRAIN = "coyo_25m+mmc4_core+sharegpt4v_pretrain"
SFT = "sharegpt4v_sft+m3it+vflan"
VILA_U_PRETRAIN = "sharegpt4v_pretrain+mmc4_core"
VILA_U_SFT = "sharegpt4v_sft+vflan+llava_video_178k"
VIDEO = "llava_video_178k+sharegpt4v_sft"
