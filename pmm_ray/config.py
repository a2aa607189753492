"""The one typed schema of every setting.

A setting has one dotted name (``masks.alpha``) in YAML, on the command line, in sweeps and in MLflow; a type, a
default, bounds and one line of meaning. Models are frozen, unknown keys are errors. Reading files and the command
line is `pmm_ray.settings`; this file only says what may be said.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Scales = tuple[Positive, ...]

NEUTRAL: JsonDict = {"neutral": True}
"""Marks a field that changes how the work is done and not what comes out."""


class Section(BaseModel):
    """Base of every section: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self, *, unused: bool = False) -> dict[str, Any]:
        """The fields on which the result depends, for an artefact's fingerprint; how fast it is made is left out.

        With `unused` also those that play no part, for what stands for results with other values in some fields.
        """
        found: dict[str, Any] = {}
        left_out = set() if unused else self.unused()
        for name, value in self:
            if name in left_out or type(self).model_fields[name].json_schema_extra == NEUTRAL:
                continue
            found[name] = value.identity(unused=unused) if isinstance(value, Section) else value
        return found

    def unused(self) -> set[str]:
        """Names of fields that play no part, the others being as they are."""
        return set()

    def all_but(self, *names: str) -> set[str]:
        """Every other field's name."""
        return set(type(self).model_fields).difference(names)


class ShapesConfig(Section):
    """The embedded data set, drawn by the program."""

    train: int = Field(240, ge=4, description="number of training images to draw")
    val: int = Field(80, ge=1, description="number of validation images to draw")
    seed: int = Field(0, ge=0, description="seed of the drawing; the same seed draws the same files")
    part_share: Annotated[float, Field(ge=0.02, le=0.3)] = Field(
        0.12, description="share of an object's area that is its class-specific part (small: a CAM covers too little)"
    )
    cooccurrence: Probability = Field(0.4, description="how often a class stands on its own kind of background")


class DataConfig(Section):
    """Images, image-level labels, class names and palette, optional ground truth."""

    kind: Literal["shapes", "voc", "coco", "folder"] = Field("shapes", description="which reader")
    root: str = Field(
        "data/shapes",
        description="folder of the data set, local or a URL such as s3://bucket/VOC2012 (shapes: drawn there if absent)",
    )
    images: str = Field("JPEGImages", description="image folder below root (voc, coco: the training images)")
    val_images: str | None = Field(None, description="validation image folder below root, if it is another (coco)")
    masks: str | None = Field(
        "SegmentationClass",
        description="ground-truth folder below root, read for evaluation only; null: none (voc, folder)",
    )
    train_list: str | None = Field(
        "ImageSets/Segmentation/train.txt",
        description="training list (voc), annotation JSON (coco), or a text file of image names (folder; null: all)",
    )
    val_list: str | None = Field(
        "ImageSets/Segmentation/val.txt", description="the same for validation; null: no validation set"
    )
    labels: str | None = Field(
        None,
        description="image-level labels: .json, .csv, .parquet, or the peers' cls_labels.npy; null: XML in Annotations (voc)",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="names of classes 1..C; null: VOC's 20, COCO's 80, or those in the labels file (folder)"
    )
    limit: int | None = Field(None, ge=1, description="use only the first N images of each list")
    negatives: bool = Field(
        False, description="train on images that the labels say have no class, as background; false: leave them out"
    )
    shapes: ShapesConfig = ShapesConfig()


class NetConfig(Section):
    """A timm network and how its input is normalised."""

    backbone: str = Field("resnet18", description="any timm model that gives features")
    options: dict[str, Any] = Field({}, description="extra arguments of timm.create_model, e.g. {pad_type: same}")
    output_stride: Literal[8, 16, 32] = Field(16, description="stride of the deepest feature map")
    weights: str = Field(
        "pretrained",
        description="'pretrained' (timm's hub), a state-dict file (a path or a URL), or 'none' with batch_norm 'train'",
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="input mean, RGB in [0, 1]; null: the backbone's own"
    )
    std: tuple[float, float, float] | None = Field(
        None, description="input std, RGB in [0, 1]; null: the backbone's own"
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "frozen",
        description="batch norm of the backbone: 'train' uses statistics of the global batch, 'frozen' the stored ones",
    )

    @property
    def weights_file(self) -> str | None:
        """The file of the weights, if they are in one."""
        return None if self.weights in ("pretrained", "none") else self.weights


class TrainConfig(Section):
    """One training run."""

    epochs: int = Field(12, ge=1, description="passes over the training images")
    batch_size: int = Field(16, ge=1, description="global batch, over all workers")
    crop: int = Field(224, ge=32, description="side of the square training crop, pixels")
    resize: tuple[Positive, Positive] = Field(
        (0.9, 1.4), description="the short side is resized to crop x a factor from this range before cropping"
    )
    flip: bool = Field(True, description="random horizontal flip")
    jitter: NonNegative = Field(0.0, description="strength of colour jitter (brightness, contrast, saturation)")
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="optimiser")
    lr: Positive = Field(1e-4, description="learning rate of pretrained layers at the start")
    head_lr_factor: Positive = Field(10.0, description="new layers learn at lr x this")
    momentum: Probability = Field(0.9, description="momentum (sgd)")
    weight_decay: NonNegative = Field(1e-4, description="weight decay; norms and biases have none")
    poly_power: Positive = Field(0.9, description="lr(step) = lr (1 - step / steps)^power")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints", json_schema_extra=NEUTRAL)
    loader_workers: int = Field(
        0, ge=0, description="processes that load images, per training worker", json_schema_extra=NEUTRAL
    )

    @model_validator(mode="after")
    def _ordered(self) -> TrainConfig:
        if self.resize[0] > self.resize[1]:
            raise ValueError(f"resize must be (smallest, largest), got {self.resize}")
        return self

    def unused(self) -> set[str]:
        """AdamW has no momentum to be set."""
        return {"momentum"} if self.optimizer == "adamw" else set()


class D2CamConfig(Section):
    """D2CAM of Mat-Label, a reconstruction: four losses on the CAM classifier, each off at weight 0."""

    category: NonNegative = Field(0.0, description="weight of the contrast between pixels and class prototypes")
    foreground: NonNegative = Field(0.0, description="weight of the contrast between foreground and background")
    stability: NonNegative = Field(0.0, description="weight of the difference to the moving average's CAM")
    exclusivity: NonNegative = Field(0.0, description="weight of two classes' activation at one pixel")
    begin: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="share of the training that is classification only, before they begin"
    )
    high: Probability = Field(0.5, description="contrasts: a class is sure where its score is highest and above")
    low: Probability = Field(0.1, description="contrasts: background is sure where every score is below")
    temperature: Positive = Field(0.1, description="contrasts: cosines are divided by this")
    momentum: Probability = Field(0.9, description="of the prototypes, by step")
    average: Probability = Field(
        0.99, description="decay of the moving average of networks, by step; after n steps at most (1 + n) / (10 + n)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> D2CamConfig:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got low {self.low} and high {self.high}")
        return self

    @property
    def on(self) -> bool:
        """Whether any part is."""
        return max(self.category, self.foreground, self.stability, self.exclusivity) > 0

    def unused(self) -> set[str]:
        """Of a part that is off its settings do not matter."""
        parts = {
            "category": ("category", "high", "low", "temperature", "momentum"),
            "foreground": ("foreground", "high", "low", "temperature"),
            "stability": ("stability", "average"),
            "exclusivity": ("exclusivity",),
        }
        return self.all_but(*(name for part in parts if getattr(self, part) > 0 for name in ("begin", *parts[part])))


class CamTrainConfig(TrainConfig):
    """Training of the multi-label classifier."""

    d2cam: D2CamConfig = D2CamConfig()
    equivariance: NonNegative = Field(0.0, description="weight of SEAM's equivariance losses (ER and ECR); 0: off")
    equivariance_scale: Positive = Field(0.3, description="scale of the second view in the equivariance losses")
    multi_crop: bool = Field(
        False,
        description="PMM's multi-crop training: crops keep a label only where a rough mask shows enough of the object",
    )
    multi_crop_share: Probability = Field(
        0.1, description="keep a class if its share of object in the crop, or of the crop covered, exceeds this"
    )
    multi_crop_alpha: Positive = Field(24.0, description="alpha of the baseline CRF that makes the rough masks")

    @model_validator(mode="after")
    def _one_regulariser(self) -> CamTrainConfig:
        if self.equivariance > 0 and self.d2cam.on:
            raise ValueError("equivariance and d2cam are two ways to train a CAM: set the weights of one of them to 0")
        return self

    def unused(self) -> set[str]:
        """Of a part that is off its settings do not matter."""
        off = {
            "d2cam": not self.d2cam.on,
            "equivariance_scale": self.equivariance == 0,
            "multi_crop_share": not self.multi_crop,
            "multi_crop_alpha": not self.multi_crop,
        }
        return super().unused() | {name for name, is_off in off.items() if is_off}


class CamInferConfig(Section):
    """How the classifier's activation maps are read out."""

    mode: Literal["multi_scale", "multi_crop"] = Field(
        "multi_scale", description="whole image at scales, or sliding crops"
    )
    scales: Scales = Field((0.5, 1.0, 1.5, 2.0), min_length=1, description="scales (multi_crop: published 0.75..3)")
    flip: bool = Field(True, description="average with the mirrored image")
    short_side: int | None = Field(None, ge=32, description="short side at scale 1, pixels; null: the image's own size")
    max_short_side: int | None = Field(
        640,
        ge=32,
        description="without short_side: photos whose own is longer are shrunk to this first, pixels (VOC's is 500 at most, COCO's 640); null: none are",
    )
    window: int = Field(448, ge=32, description="side of a crop (multi_crop)")
    window_stride: int = Field(300, ge=1, description="distance between crops (multi_crop)")
    batch_size: int = Field(16, ge=1, description="forwards in one batch", json_schema_extra=NEUTRAL)
    stride: int = Field(4, ge=1, description="the CAM is stored at image size / stride")

    def unused(self) -> set[str]:
        """Whole images have no windows, and a size that is given has no limit."""
        windows = {"window", "window_stride"} if self.mode == "multi_scale" else set()
        return windows if self.short_side is None else windows | {"max_short_side"}


class CamConfig(Section):
    """The CAM classifier: its network, training and read-out; or CAMs made elsewhere."""

    npy: str | None = Field(
        None,
        description="folder of .npy dictionaries {0-based class: (H, W) map} made elsewhere, used instead of training",
    )
    net: NetConfig = NetConfig()
    train: CamTrainConfig = CamTrainConfig()
    infer: CamInferConfig = CamInferConfig()


CrfPreset = Literal["ppg", "baseline", "rrm_train", "rrm_infer", "segmentation", "irn"]


class CrfConfig(Section):
    """Dense CRF: a preset, any of whose numbers may be replaced."""

    preset: CrfPreset = Field("ppg", description="named constants of the published codes")
    gaussian_sxy: Positive | None = Field(
        None, description="Gaussian kernel: spatial width, pixels; null: the preset's"
    )
    gaussian_compat: NonNegative | None = Field(None, description="Gaussian kernel: weight; null: the preset's")
    bilateral_sxy: Positive | None = Field(
        None, description="bilateral kernel: spatial width, pixels; null: the preset's"
    )
    bilateral_srgb: Positive | None = Field(
        None, description="bilateral kernel: colour width, 0..255; null: the preset's"
    )
    bilateral_compat: NonNegative | None = Field(None, description="bilateral kernel: weight; null: the preset's")
    iterations: int | None = Field(None, ge=0, description="mean-field iterations; null: the preset's")
    backend: Literal["numba", "pydensecrf"] = Field(
        "numba", description="this package's engine, or pydensecrf for comparison, which is the extra 'pydensecrf'"
    )

    @property
    def words(self) -> str:
        """As in 'CRF preset segmentation, gaussian_sxy 3': the preset, and what differs from it."""
        changes = self.model_dump(exclude={"preset", "backend"}, exclude_none=True)
        return ", ".join([f"CRF preset {self.preset}", *(f"{name} {value:g}" for name, value in changes.items())])


SEGMENTATION_CRF = CrfConfig(preset="segmentation")
"""Comes after a segmentation network, where nothing else is said."""


class TrimapConfig(Section):
    """Mat-Label: which pixels are certain before matting decides the others."""

    source: Literal["cam", "crf"] = Field(
        "cam", description="certain by the CAM's own scores, or by two dense CRFs, as RRM's labels are"
    )
    high: Probability = Field(0.45, description="source 'cam': a class is certain where its score is highest and above")
    low: Probability = Field(0.1, description="source 'cam': background is certain where every score is below")
    foreground_alpha: Positive = Field(4.0, description="source 'crf': (1 - x)^alpha of the CRF that classes come from")
    background_alpha: Positive = Field(
        32.0, description="source 'crf': (1 - x)^alpha of the CRF that background comes from"
    )
    min_probability: Probability = Field(0.8, description="source 'crf': certain from this probability on")
    crf: CrfConfig = CrfConfig(preset="rrm_train")

    @model_validator(mode="after")
    def _ordered(self) -> TrimapConfig:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got low {self.low} and high {self.high}")
        return self

    @property
    def words(self) -> str:
        """As in 'trimap 0.6 / 0.2', or 'alpha 4 and 32' and what differs from RRM's way with its CRFs."""
        if self.source == "cam":
            return f"trimap {self.high:g} / {self.low:g}"
        usual = TrimapConfig()
        words = [f"alpha {self.foreground_alpha:g} and {self.background_alpha:g}"]
        if self.min_probability != usual.min_probability:
            words.append(f"min_probability {self.min_probability:g}")
        if self.crf != usual.crf:
            words.append(self.crf.words)
        return ", ".join(words)

    def unused(self) -> set[str]:
        """The other source's numbers do not matter."""
        return self.all_but("source", "high", "low") if self.source == "cam" else {"high", "low"}


class MattingConfig(Section):
    """Mat-Label: image matting of what the trimap leaves open."""

    kind: Literal["closed_form", "knn", "random_walk"] = Field(
        "closed_form", description="what says which pixels look alike: pymatting's closed form, kNN, or random walk"
    )
    epsilon: float = Field(1e-4, ge=1e-6, description="closed form: regularisation of the colour-line model")
    size: int = Field(
        320,
        ge=16,
        description="long side at which matting is done, pixels; a guided filter brings mattes to the image's",
    )
    margin: Probability = Field(0.1, description="a pixel whose best two scores are closer becomes 255")

    def unused(self) -> set[str]:
        """Only the closed form has an epsilon."""
        return set() if self.kind == "closed_form" else {"epsilon"}


class MasksConfig(Section):
    """Pseudo-masks from CAMs."""

    maker: Literal["ppg", "baseline", "threshold", "matting"] = Field(
        "ppg", description="proportional generation, one CRF over all classes, a plain threshold, or image matting"
    )
    cvs: bool = Field(True, description="coefficient of variation smoothing before the maker")
    s: NonNegative = Field(0.3, description="CVS: strength in x^(1 - s cv)")
    t: Probability = Field(0.05, description="CVS: x > t counts as foreground")
    gate: bool = Field(True, description="CVS: zero x < t first (released code; the paper has no gate)")
    alpha: Positive = Field(11.0, description="background score (1 - x)^alpha")
    proportion: bool = Field(
        True, description="PPG: compare p = x / (eps + area) between classes; off: compare x itself"
    )
    eps: NonNegative = Field(1.0, description="PPG: eps of the proportion (1 as released, 0 in the paper)")
    tie: Literal["background", "foreground"] = Field(
        "background", description="PPG: what a pixel becomes that is inside a class whose score there is 0"
    )
    threshold: Probability = Field(0.2, description="maker 'threshold': background score")
    crf: CrfConfig = CrfConfig()
    trimap: TrimapConfig = TrimapConfig()
    matting: MattingConfig = MattingConfig()

    @property
    def used_crf(self) -> CrfConfig:
        """The maker's CRF: matting has its trimap's."""
        return self.trimap.crf if self.maker == "matting" else self.crf

    @property
    def needs_crf(self) -> bool:
        """Whether the CRF plays a part."""
        return self.maker in ("ppg", "baseline") or (self.maker == "matting" and self.trimap.source == "crf")

    def unused(self) -> set[str]:
        """What the maker does not read."""
        read = {
            "ppg": ("alpha", "proportion", *(("eps",) if self.proportion else ()), "tie", "crf"),
            "baseline": ("alpha", "crf"),
            "threshold": ("threshold",),
            "matting": ("trimap", "matting"),
        }[self.maker]
        # t is also that of the facts' coefficient of variation
        shared = ("maker", "cvs", "t", *(("s", "gate") if self.cvs else ()))
        return self.all_but(*shared, *read)


class SegTrainConfig(TrainConfig):
    """Training of the segmentation network."""

    loss: Literal["ce", "bce"] = Field("ce", description="softmax cross-entropy (released) or binary per class (paper)")
    aux_weight: NonNegative = Field(0.4, description="weight of the auxiliary head's loss; 0: no auxiliary head")


class PredictConfig(Section):
    """Inference of the segmentation network."""

    scales: Scales = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), min_length=1, description="scales whose softmax is averaged"
    )
    flip: bool = Field(True, description="average with the mirrored image")
    max_short_side: int | None = Field(
        640,
        ge=32,
        description="photos whose short side is longer are shrunk to this first, pixels (VOC's is 500 at most, COCO's 640); masks keep the photo's size; null: none are",
    )
    batch_size: int = Field(16, ge=1, description="forwards in one batch", json_schema_extra=NEUTRAL)


class SegConfig(Section):
    """The segmentation network: a segmentation_models_pytorch decoder on a timm encoder."""

    arch: Literal["deeplabv3plus", "pspnet", "unet", "fpn"] = Field("deeplabv3plus", description="decoder")
    net: NetConfig = NetConfig()
    train: SegTrainConfig = SegTrainConfig(epochs=16, crop=192, resize=(0.8, 1.6), lr=2e-4)
    predict: PredictConfig = PredictConfig()


class PusConfig(Section):
    """Pretended under-fitting."""

    variant: Literal["none", "clamp", "rescale", "pow", "ignore"] = Field(
        "rescale", description="how large losses are treated"
    )
    beta: NonNegative = Field(0.5, description="PUS acts on steps whose mean loss is below beta (0.5 VOC, 0.8 COCO)")
    kappa: Positive = Field(0.5, description="the loss above which a pixel counts as wrongly labelled, or the power")
    gate: Literal["local", "global"] = Field(
        "global",
        description="mean over all workers, or per worker (released), by which the result depends on their number",
    )
    count_ignored: bool = Field(False, description="count 255 pixels as zeros in the mean, as the released code does")

    def unused(self) -> set[str]:
        """Without PUS its other settings do not matter, but for what the mean of any loss is over."""
        return self.all_but("variant", "count_ignored") if self.variant == "none" else set()


class CyclesConfig(Section):
    """Cyclic pseudo-masks."""

    count: int = Field(1, ge=0, description="cycles after the first training")
    label_filter: bool = Field(True, description="keep only background and image-level classes in the next masks")
    pus: bool = Field(False, description="use PUS in the cycles too (released: only in the first training)")
    crf: CrfConfig = SEGMENTATION_CRF
    checkpoint: Literal["last", "best_val"] = Field(
        "last", description="'best_val' chooses by validation mIoU: it looks at ground truth and is labelled so"
    )


class HeadConfig(Section):
    """RRM's segmentation head: two dilated 3x3 convolutions on the backbone's features."""

    channels: int = Field(512, ge=1, description="channels between the two convolutions")
    dilation: int = Field(
        12, ge=1, description="of both convolutions; 12 as published, for output stride 8 (half of it for stride 16)"
    )


class ReliableConfig(Section):
    """RRM's labels, made of the network's own CAMs while it trains."""

    rule: Literal["union", "agreement", "crf"] = Field(
        "union",
        description="the CRFs' label wherever the CAM is sure of any class (released), or of the same one (paper); 'crf': no reliability, the plain label of the CRF with foreground_alpha at every pixel",
    )
    scales: Scales = Field(
        (0.5, 1.0, 1.5, 2.0), min_length=1, description="scales of the crop whose CAMs are averaged; only 1 learns"
    )
    cam_alpha: Positive = Field(32.0, description="background score (1 - x)^this in the CAM's own argmax")
    foreground_alpha: Positive = Field(4.0, description="background score (1 - x)^this in the CRF that finds classes")
    background_alpha: Positive = Field(32.0, description="the same in the CRF that finds background")
    min_score: Probability = Field(0.1, description="the CAM is sure of a class above this score")
    top_share: Probability = Field(0.4, description="and there only at this share of the class's pixels, its highest")
    min_background: Probability = Field(0.8, description="the CAM is sure of background above this background score")
    min_probability: Probability = Field(0.8, description="the CRFs are sure from this probability on")
    crf: CrfConfig = CrfConfig(preset="rrm_train")

    def unused(self) -> set[str]:
        """Without reliability its thresholds do not matter."""
        return self.all_but("rule", "scales", "foreground_alpha", "crf") if self.rule == "crf" else set()


class RrmTrainConfig(TrainConfig):
    """Training of RRM's network: its labels are of the images alone, those of pixels are made on the way."""

    joint_from: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="share of the training that is classification only, before segmentation joins in"
    )
    energy_weight: NonNegative = Field(
        1e-7, description="weight of the dense energy, which is negative by construction; 0: without it"
    )
    energy_srgb: Positive = Field(15.0, description="dense energy: width in colour, 0..255")
    energy_sxy: Positive = Field(100.0, description="dense energy: width in position, pixels of the crop")
    energy_gradient: Literal["published", "exact"] = Field(
        "published", description="gradient of the dense energy: -2 K P S as published, or that of its formula"
    )

    @model_validator(mode="after")
    def _whole_cells(self) -> RrmTrainConfig:
        # masks are predicted at sides of whole cells; learned on others they would lie a few pixels off
        if self.crop % 32:
            raise ValueError(f"the crop of RRM must be a multiple of 32, e.g. {32 * round(self.crop / 32)}")
        return self

    def unused(self) -> set[str]:
        """Without the dense energy its settings do not matter."""
        off = {"energy_srgb", "energy_sxy", "energy_gradient"} if self.energy_weight == 0 else set()
        return super().unused() | off


class RrmConfig(Section):
    """Reliability Does Matter: one network with two heads, trained end to end on image-level labels."""

    net: NetConfig = NetConfig()
    head: HeadConfig = HeadConfig(dilation=6)
    train: RrmTrainConfig = RrmTrainConfig(epochs=16, resize=(0.8, 1.6))
    labels: ReliableConfig = ReliableConfig()
    predict: PredictConfig = PredictConfig()
    crf: CrfConfig = CrfConfig(preset="rrm_infer")
    label_filter: bool = Field(
        True, description="keep only background and image-level classes in the masks of the training images"
    )


class EvalConfig(Section):
    """Evaluation."""

    thresholds: tuple[Probability, ...] = Field(
        (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5), description="background scores of the CAM's curve"
    )
    crf: bool = Field(
        True, description="score the network's predictions after a dense CRF too (preset 'segmentation'; RRM: rrm.crf)"
    )
    min_images: int = Field(
        8, ge=1, description="also report the mean over classes that at least this many images of the set have"
    )
    boundary: Probability = Field(
        0.0,
        description="also score masks in a band of this width along outlines, as a share of the diagonal (0.02); 0: off",
    )


class AblationConfig(Section):
    """The paper's table on any data set."""

    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="one complete pipeline per seed")
    alphas: tuple[Positive, ...] = Field(
        (), description="also score the mask makers at these alphas and show the best, chosen on ground truth"
    )
    trimaps: tuple[TrimapConfig, ...] = Field(
        (),
        description="mat_label_ablation: trimaps that matting is scored with, the best of each source shown, chosen on ground truth; empty: that of masks.trimap with either source",
    )
    upper_bound: bool = Field(False, description="also train on the ground truth (labelled as the upper bound)")
    segmentation: bool = Field(True, description="train segmentation networks; off: masks only")
    parts: bool = Field(True, description="mat_label_ablation: also train D2CAM without each of its parts, for the CAM")

    @field_validator("seeds", "alphas", "trimaps")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """A table would take the mean over what is there twice."""
        known = [value.identity() if isinstance(value, Section) else value for value in values]
        for number, value in enumerate(known):
            if value in known[:number]:
                raise ValueError(f"number {number + 1} is there already, and a table needs each once")
        return values


class SweepConfig(Section):
    """A search for settings. What is searched stands in the sweep file's `sweep.space`; see `pmm_ray.search.space`."""

    trial: Literal["masks", "segmentation"] = Field(
        "masks",
        description="what a setting is tried on: masks from the same CAMs, without training; or a training with whatever it needs",
    )
    metric: Literal["auto", "masks", "contrast", "val"] = Field(
        "auto",
        description="what is maximised: 'masks' mIoU on training photos with ground truth; 'contrast', which needs none; 'val' mIoU; 'auto': val of a training, else masks if there is ground truth, else contrast",
    )
    searcher: Literal["grid", "random", "quasi_random", "optuna"] = Field(
        "optuna", description="how settings are chosen: every combination, at random, evenly spread, or by Optuna's TPE"
    )
    settings: int = Field(64, ge=1, description="settings to try, the base config's own first (grid: all there are)")
    seed: int = Field(0, ge=0, description="seed of the searcher, and of the order of the photos")
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: stop settings early that do worse than others"
    )
    grace: Probability = Field(0.125, description="asha: no setting is stopped before this share of its work")
    reduction: int = Field(3, ge=2, description="asha: one setting in this many goes on at each halt")
    reports: int = Field(
        16,
        ge=1,
        description="how often a setting reports: parts of the photos (masks), halts between epochs (segmentation)",
    )
    concurrent: int | None = Field(
        None, ge=1, description="settings under way at once; null: 16 (masks), or as many as there is room for"
    )
    cpus: Positive = Field(
        1.0, description="CPUs of a training, with cluster.train_workers=1", json_schema_extra=NEUTRAL
    )
    report_scales: Scales = Field(
        (1.0,),
        min_length=1,
        description="scales at which the network is scored between epochs; the end is seg.predict's",
    )


class ClusterConfig(Section):
    """Where and on how many processes the work runs."""

    address: str | None = Field(
        None, description="Ray cluster; null: the job's own, or a new local one; 'auto': a running one"
    )
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a new local Ray; null: all")
    train_workers: int = Field(1, ge=0, description="training workers; 0: train in the program's own process")
    gpu: Literal["auto", "yes", "no"] = Field("auto", description="train and infer on GPUs")
    amp: bool = Field(True, description="mixed precision on GPUs")
    mask_workers: int | None = Field(
        None, ge=0, description="most CPU actors that make masks; null: one per CPU; 0: the program's own process"
    )
    infer_workers: int | None = Field(
        None, ge=0, description="most actors that run networks; null: one per GPU or CPU; 0: the program's own process"
    )
    batch_size: int = Field(4, ge=1, description="images a CPU actor is handed at once")
    attempts: int = Field(3, ge=1, description="an image that ends its worker this many times is set aside and listed")
    max_failures: int = Field(2, ge=0, description="restarts of a training whose worker failed")
    verbose: bool = Field(False, description="show Ray's own messages")

    @field_validator("gpu", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        """YAML reads a plain yes or no as true or false."""
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = Field(True, description="track with MLflow")
    uri: str | None = Field(
        None, description="tracking URI; null: sqlite below store, which must then be a local folder"
    )
    experiment: str = Field("pmm_ray", description="experiment name")
    overlays: int = Field(
        8, ge=0, description="overlay pictures (photo, CAM, mask, ground truth) per mask and model stage"
    )


class Config(Section):
    """Everything."""

    recipe: Literal["pmm", "ablation", "rrm", "rrm_two_step", "rrm_ablation", "mat_label", "mat_label_ablation"] = (
        Field("pmm", description="which method")
    )
    name: str = Field("pmm", pattern=r"^[A-Za-z0-9._-]+$", description="name of the run in MLflow and on the screen")
    store: str = Field(
        "runs",
        description="folder of artefacts, local or a URL such as s3://bucket/runs, shared by runs: equal work is done once",
        json_schema_extra=NEUTRAL,
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, order and augmentation")
    data: DataConfig = DataConfig()
    cam: CamConfig = CamConfig()
    masks: MasksConfig = MasksConfig()
    seg: SegConfig = SegConfig()
    pus: PusConfig = PusConfig()
    cycles: CyclesConfig = CyclesConfig()
    rrm: RrmConfig = RrmConfig()
    eval: EvalConfig = EvalConfig()
    ablation: AblationConfig = AblationConfig()
    cluster: ClusterConfig = Field(ClusterConfig(), json_schema_extra=NEUTRAL)
    tracking: TrackingConfig = Field(TrackingConfig(), json_schema_extra=NEUTRAL)


class ApplicationConfig(Section):
    """A trained network applied to photos: `pmm_ray.predict`."""

    predict: PredictConfig = PredictConfig()
    crf: Literal["none", CrfPreset] = Field(
        "none",
        description="dense CRF after the network; 'val + CRF' in the tables is 'segmentation' (RRM: 'rrm_infer')",
    )
    overlays: int = Field(
        8, ge=0, description="photos to show with their masks in overlays.png; 0: no picture", json_schema_extra=NEUTRAL
    )
    cluster: ClusterConfig = Field(ClusterConfig(), json_schema_extra=NEUTRAL)
