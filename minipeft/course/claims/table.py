"""The entries: first the claims that circulate most, then what else course notes say."""
from . import computed, observed
from .claim import Claim

BOTTLENECK, LOW_RANK, LORA = "00_the_bottleneck", "02_low_rank", "03_lora"
PRACTICE, QLORA = "04_lora_in_practice", "06_qlora"
PROMPT, PREFIX = "07_prompt_tuning", "08_prefix_tuning"
ADAPTERS, COMPARISON = "09_houlsby_adapters", "10_comparison"
THEORY, OVERVIEW = "lesson on PEFT theory", "overview of PEFT"
COMPUTED = "computed here"
TRUE, CONDITIONS, IMPRECISE, FALSE = "true", "conditionally true", "imprecise", "false"

CLAIMS = (
    Claim(1, "LoRA reduces trainable parameters 10,000x (from 70B to 10M)", OVERVIEW, IMPRECISE,
          "70B to 10M is 7,000; the 10,000 is GPT-3 175B with r = 4; for a 70B it depends on "
          "targets and rank", "Hu et al. 2021, section 4.2 and Table 4",
          f"{BOTTLENECK}: What PEFT changes: the counts", computed.ten_thousand_times),
    Claim(2, "LoRA reduces VRAM by 3x", THEORY, CONDITIONS,
          "GPT-3's figure, with full fine-tuning at 6.85 bytes per parameter; at 16 bytes a 7B has "
          "7.6, and activations, which LoRA hardly saves, bring it towards 1",
          "Hu et al. 2021, section 4.2",
          f"{BOTTLENECK}: Does LoRA save activations?",
          computed.three_times_less_memory),
    Claim(3, "Llama-7B can be fine-tuned on a single 16GB GPU", OVERVIEW, CONDITIONS,
          "QLoRA easily; LoRA over bf16 with batch 1, short sequences and checkpointing; an 8B in "
          "bf16 hardly", COMPUTED, f"{BOTTLENECK}: What PEFT changes: the bytes",
          computed.seven_b_on_16_gib),
    Claim(4, "r is usually 8, 16 or 64", "both", IMPRECISE,
          "a habit that says nothing of your task: r = 1 learns one language, and at equal loss "
          "forgets more; of eight it learns less in the same steps",
          "Hu et al. 2021, Table 6: q and v, r = 1 73.4 / 91.3, r = 64 73.5 / 91.4",
          f"{LORA}: How much rank does a new skill need?", observed.usual_ranks),
    Claim(5, "Comparable to full fine-tuning for most tasks, with 1% of the cost", OVERVIEW, FALSE,
          "the 1 % counts trained numbers, a step takes two thirds of the operations; quality: "
          "given steps, yes; in few steps LoRA was far behind", COMPUTED,
          f"{BOTTLENECK}: What PEFT changes: the compute",
          observed.one_percent_of_the_cost),
    Claim(6, "LoRA updates < 1%", THEORY, CONDITIONS,
          "on q and v, or at small r of large models; small models break it", COMPUTED,
          f"{BOTTLENECK}: What PEFT changes: the counts", computed.less_than_one_percent),
    Claim(7, "LoRA has zero inference latency when merged", "both", CONDITIONS,
          "by construction; but unmerged it costs, a 16-bit merge rounds, and merged adapters "
          "cannot share a batch", "Hu et al. 2021, sections 4.1 and 4.2", f"{PRACTICE}: Latency",
          observed.zero_latency_when_merged),
    Claim(8, "LoRA's performance is near full fine-tuning", THEORY, CONDITIONS,
          "with steps enough, and each at its own rate: of eight languages LoRA had learned far "
          "less in 200 steps, and as much in the end. On code and mathematics at 7B, in continued "
          "pretraining, it stayed behind",
          "Hu et al. 2021, Table 4: GPT-3 on MNLI, 91.7 against 89.5; Biderman et al. 2024",
          f"{COMPARISON}: Quality, and the curves behind it", observed.near_full),
    Claim(9, "A 70B checkpoint takes 140GB", THEORY, TRUE,
          "weights in 16 bits; to resume training takes master copy and moments, six times that",
          COMPUTED, f"{BOTTLENECK}: The checkpoint", computed.checkpoint_140_gb),
    Claim(10, "Gradients and optimizer states of 70B parameters take about 1TB", THEORY, CONDITIONS,
          "under mixed-precision Adam, 14 bytes a parameter; other recipes take less", COMPUTED,
          f"{BOTTLENECK}: What training adds: gradients and optimizer", computed.a_terabyte),
    Claim(11, "QLoRA fine-tunes a 65B model on a single 48GB GPU", "both", CONDITIONS,
          "48 GiB, batch 1, 512 tokens, checkpointing; with float32 adapters it needs more than "
          "48 x 10^9 bytes", "Dettmers et al. 2023, abstract; the bytes are computed here",
          f"{QLORA}: The memory of a 65B", computed.sixty_five_b_on_48_gib),
    Claim(12, "Double quantization saves even more memory", THEORY, TRUE,
          "0.373 bits per weight: 3 GB of 65B", "Dettmers et al. 2023, section 3",
          f"{QLORA}: Half a bit, and how to get most of it back", computed.double_quantization),
    Claim(13, "QLoRA has high inference latency (dequantization)", THEORY, CONDITIONS,
          "where layers are so small that calling them takes the time, or W is built in memory; "
          "for many tokens the product outweighs it, for one token of a larger model 4 bits are "
          "faster, and merged nothing is left of it", "computed and measured here, on a CPU",
          f"{QLORA}: Slow or fast?",
          observed.slow_dequantization),
    Claim(14, "QLoRA's performance is near full fine-tuning", THEORY, CONDITIONS,
          "the paper compares with 16-bit LoRA at 7B to 65B, and says in section 8 that full "
          "fine-tuning was not matched at 33B and 65B",
          "Dettmers et al. 2023, Table 4: mean 53.1 against 53.0, and section 8",
          f"{QLORA}: Train it: LoRA and QLoRA side by side", observed.qlora_near_full),
    Claim(15, "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.06",
          OVERVIEW, TRUE, "Llama-2-7B, q_proj and v_proj, r = 8", COMPUTED,
          f"{BOTTLENECK}: What PEFT changes: the counts", computed.the_printed_line),
    Claim(16, "Prompt tuning updates < 0.1%", THEORY, CONDITIONS,
          "of large models; it is P C numbers whatever the depth, 0.214 % of the tiny GPT",
          "Lester et al. 2021, Figure 4", f"{PROMPT}: How few numbers is that?",
          computed.prompt_below_a_tenth_percent),
    Claim(17, "Prompt tuning has zero inference latency", THEORY, IMPRECISE,
          "P more positions: computed anew in every call they cost; with their keys and values "
          "kept, what is left is to attend to them and to hold them", COMPUTED,
          f'{PROMPT}: "Zero latency"? Count what the positions cost', observed.prompt_latency),
    Claim(18, "Prompt tuning lags behind LoRA for complex tasks", THEORY, CONDITIONS,
          "where something must be learned; it elicits well, and catches up with scale",
          "Hu et al. 2021, Table 4: PreEmbed on WikiSQL 63.1, LoRA 73.4; Lester et al. 2021, "
          "Figure 1", f"{PROMPT}: The experiment: NOVEL, and a line drawn before training",
          observed.prompt_is_lower),
    Claim(19, "Prefix tuning trains keys and values of every attention layer", THEORY, TRUE,
          "2 L P d_kv numbers; grouped-query attention shrinks them",
          "Li and Liang 2021, section 4.2", f"{PREFIX}: Counting",
          computed.keys_and_values_in_every_layer),
    Claim(20, "Prefix tuning reduces the effective context length", THEORY, CONDITIONS,
          "by P positions, usually few; a soft prompt does the same", "Hu et al. 2021, section 3",
          f"{PREFIX}: Context used up", computed.context_used_up),
    Claim(21, "Adapters update about 3%", THEORY, CONDITIONS,
          "BERT-large with the best bottleneck per task; the share follows m and the width",
          "Houlsby et al. 2019, Table 1: 3.6 % and 2.1 %", f'{ADAPTERS}: "3 %": count',
          computed.three_percent_adapters),
    Claim(22, "Adapters add inference latency (extra layers)", "both", CONDITIONS,
          "most at small batches, where layers in series cannot run side by side",
          "Hu et al. 2021, Table 1: +20.7 and +30.3 % at batch 1, +2.2 and +3.0 % at batch 32",
          f"{ADAPTERS}: Latency", observed.adapter_latency),
    Claim(23, "Adapters: performance good, memory savings medium", THEORY, IMPRECISE,
          "the savings are LoRA's at equal numbers of trained parameters; good in the end, far "
          "behind full fine-tuning in 200 steps of eight languages",
          "Houlsby et al. 2019, Table 1: 80.0 against 80.4 on GLUE",
          f"{ADAPTERS}: Adapters against LoRA, at equal numbers of trained parameters",
          observed.good_and_medium),
    Claim(24, "PEFT mitigates catastrophic forgetting because most weights are frozen", OVERVIEW,
          IMPRECISE, "the base can be had back, bit for bit; the adapted model forgets more at "
          "larger rates, and here full fine-tuning forgets least at equal loss and equal steps. At "
          "7B LoRA was found to forget less, and to learn less",
          "measured here; Biderman et al. 2024",
          f"{COMPARISON}: Forgetting",
          observed.forgetting_mitigated),
    Claim(25, "A is d x r, B is r x d, and W_new = W_frozen + B A", OVERVIEW, FALSE,
          "with these shapes B A is r x r; it is B (d, r) and A (r, d)", "Hu et al. 2021, "
          "section 4.1", f"{LORA}: The idea, with shapes", computed.shapes_as_written),
    Claim(26, "W' = W + BA", "both", IMPRECISE,
          "the update is (alpha / r) B A; merged without the scale it is another model",
          "Hu et al. 2021, section 4.1", f"{LORA}: The scale: α/r, or α/√r?",
          computed.without_the_scale),
    Claim(27, "The change in weights during fine-tuning has a low intrinsic rank", "both",
          IMPRECISE, "a hypothesis; B A has rank r by construction, and full fine-tuning's own "
          "change need not be of low rank for LoRA to work: LoRA's is thin and long, and has "
          "directions that the base has not", "measured here; Shuttleworth et al. 2024",
          f"{LOW_RANK}: The change that full fine-tuning makes", observed.low_intrinsic_rank),
    Claim(28, "Adapters are inserted between the Transformer layers", THEORY, FALSE,
          "inside each layer, twice: after attention and after the MLP",
          "Houlsby et al. 2019, section 2.1",
          f"{ADAPTERS}: Where does it sit? Inside each layer, twice",
          computed.between_the_layers),
    Claim(29, "QLoRA's adapters are in FP16/BF16", "both", CONDITIONS,
          "they may be; HuggingFace's and this package's default is float32, for a 16-bit weight "
          "does not feel small steps", COMPUTED, f"{QLORA}: The memory of a 65B",
          computed.sixteen_bit_adapters),
    Claim(30, "Only A and B are saved: a few MBs", THEORY, CONDITIONS,
          "q and v at small r; all linears at r = 64 are hundreds of MB", COMPUTED,
          f"{PRACTICE}: The files", computed.a_few_megabytes),
    Claim(31, "Adapters can be swapped on the fly without reloading the base", THEORY, TRUE,
          "as long as none is merged", COMPUTED, f"{PRACTICE}: Switching adapters",
          computed.swapping),
    Claim(32, "Full fine-tuning: updates 100%, no savings, best performance", THEORY, IMPRECISE,
          "the first two hold; it learns fastest, and adapters reach it when they get the steps",
          "Hu et al. 2021, Table 4: LoRA 37.7M ahead on WikiSQL, MNLI and SAMSum",
          f"{COMPARISON}: The reference run", observed.full_is_best),
    Claim(33, "Fine-tuning Llama-3-70B updates 70B parameters and needs 100s of GBs of VRAM",
          OVERVIEW, TRUE, "564 GB with everything in 16 bits, 1,129 GB under mixed precision, "
          "before activations", COMPUTED, f"{BOTTLENECK}: The recipes", computed.hundreds_of_gb),
    Claim(34, "PEFT updates only a tiny subset of the parameters", "both", IMPRECISE,
          "none of the model's: it trains new ones beside them (BitFit would train a subset)",
          COMPUTED, f"{LORA}: LoRA by hand, inside a GPT", computed.a_subset),
    Claim(35, "B is initialized to 0 and A to a Gaussian", THEORY, CONDITIONS,
          "in the paper; HuggingFace PEFT's default draws A uniformly",
          "Hu et al. 2021, section 4.1", f"{LORA}: Four ways to start", computed.gaussian_a_zero_b),
    Claim(36, "QLoRA loads the base model in 4 bits", "both", IMPRECISE,
          "its linears; constants, embedding, head and norms bring a 7B to 4.6 bits a parameter",
          COMPUTED, f"{BOTTLENECK}: What PEFT changes: the bytes",
          computed.loaded_in_four_bits),
    Claim(37, "Memory savings: LoRA high, QLoRA very high", THEORY, CONDITIONS,
          "at 7B and small batches; with the activations of a small model both are modest",
          COMPUTED, f"{COMPARISON}: Memory", observed.high_and_very_high),
)
