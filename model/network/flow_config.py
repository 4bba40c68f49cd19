"""The choices of the training objective, readable without the libraries that compute it."""

from __future__ import annotations

from pydantic import Field

from schemas.recipe import RecipePart


class FlowConfig(RecipePart):
    """The objective. Probabilities are per sample; every field below `corrections` turns one of them off or on."""

    shift: float = 5.0
    video_weight: float = 1.0
    audio_weight: float = 0.2
    clean_first_frame_prob: float = Field(default=0.5, ge=0, le=1)
    cross_modal_mask_prob: float = Field(default=0.2, ge=0, le=1)
    text_dropout_prob: float = Field(default=0.1, ge=0, le=1)
    timbre_dropout_prob: float = Field(default=0.1, ge=0, le=1)
    """Per voice. The release's code uses 0.1, digests of the paper say 0.2."""

    # corrections
    modes_per_sample: bool = True
    """False: one draw of first-frame mode and of cross-modal masking for the whole batch, as in the release."""
    drop_all_text: bool = True
    """False: when every caption of a batch is dropped the first is restored, so at batch size 1 none is ever dropped."""
    score_clean_frame: bool = False
    """True: a given first frame stays in the loss, though its noise cannot be predicted from clean input."""
    importance_sampling: bool = True
    """Timesteps are drawn in proportion to w(t) and weighted 1: the same expected loss with less variance. False: drawn
    uniformly and weighted by w(t), which is below 0.4 for a quarter of the draws and 0 at t = 1000."""
    mean_over: str = Field(default="tokens", pattern="^(tokens|samples)$")
    """"tokens": the mean over all video (audio) tokens of the step on all ranks. "samples": over samples, each the mean of
    its own elements, so that a short clip's token counts for more than a long one's."""
    round_to_bfloat16: bool = False
    """True: latents, noise and target are rounded to bfloat16 first."""

    @classmethod
    def official(cls) -> FlowConfig:
        """The release's behaviour."""
        return cls(
            modes_per_sample=False,
            drop_all_text=False,
            score_clean_frame=True,
            importance_sampling=False,
            mean_over="samples",
            round_to_bfloat16=True,
        )
