"""All that a diagnosis says, in English and Chinese. Numbers go in by str.format."""

from __future__ import annotations

from typing import Any

LANGUAGES = ("en", "zh")

WORDS: dict[str, tuple[str, str]] = {
    # the headline
    "headline_healthy": ("Healthy: nothing found that needs mending.", "健康：没有发现需要处理的问题。"),
    "headline_healthy_loops": (
        "Healthy: nothing found that needs mending. Decoded greedily it loops, as most small models do; sampled it "
        "does not.",
        "健康：没有发现需要处理的问题。贪心解码时会陷入循环（小模型大多如此），采样时不会。",
    ),
    "headline_parrots_cause": ("It parrots. Main cause: {cause}.", "模型在复读。主要原因：{cause}。"),
    "headline_parrots": (
        "It parrots, and nothing was found that would explain it.",
        "模型在复读，但没有找到能解释它的原因。",
    ),
    "headline_cause": ("It does not parrot, but something is wrong: {cause}.", "模型没有复读，但存在问题：{cause}。"),
    "headline_unwritten": (
        "Nothing found that needs mending, but no text was written: whether it parrots is not known.",
        "没有发现需要处理的问题，但没有生成文本：无法判断是否复读。",
    ),
    "headline_unwritten_cause": (
        "Something is wrong: {cause}. No text was written: whether it parrots is not known.",
        "存在问题：{cause}。没有生成文本：无法判断是否复读。",
    ),
    "headline_no_model": (
        "The run has no saved model yet; judged by its records: {cause}.",
        "这次训练还没有保存模型，仅凭训练记录判断：{cause}。",
    ),
    "headline_no_model_healthy": (
        "The run has no saved model yet; its records show nothing wrong so far.",
        "这次训练还没有保存模型；到目前为止，训练记录没有显示出问题。",
    ),
    # the ladder
    "rung_uniform": ("uniform guess", "均匀猜测"),
    "rung_unigram": ("token frequencies", "词元频率（一元）"),
    "rung_bigram": ("bigram (one token before)", "二元（看前一个词元）"),
    "rung_trigram": ("trigram (two tokens before)", "三元（看前两个词元）"),
    "stands_above_uniform": (
        "Above the uniform guess: it is surer of wrong tokens than pure chance would be.",
        "高于均匀猜测：比纯粹乱猜还差，对错误的词元过于自信。",
    ),
    "stands_below_uniform": (
        "Above token frequencies: it knows less than how often each token occurs.",
        "高于词元频率：连每个词元出现多少次都还没学会。",
    ),
    "stands_below_unigram": (
        "Below token frequencies but above the bigram: it hardly uses context.",
        "低于词元频率，但高于二元：几乎没有用到上下文。",
    ),
    "stands_below_bigram": (
        "Below the bigram: it uses context, though less than two tokens' worth.",
        "低于二元：用到了上下文，但还不及只看前两个词元的三元统计。",
    ),
    "stands_below_trigram": (
        "Below the trigram: it uses more context than counting could.",
        "低于三元：用到的上下文已超过统计计数所能做到的。",
    ),
    "no_loss": ("It has no loss to place it by.", "没有损失值，无法判断模型所处的位置。"),
    "no_ladder": ("There is no held-out text to place the model by.", "没有留出文本，无法判断模型所处的位置。"),
    # the writers
    "who_true": ("true text", "真实文本"),
    "who_sampled": ("sampled, temperature 1", "采样，温度 1"),
    "who_greedy": ("greedy", "贪心"),
    # causes: title, and what to do next
    "not_learning": ("it is not learning", "模型没有在学习"),
    "not_learning_next": (
        "Run train.py --preflight on this configuration: it checks targets, gradients and updates in a minute. Longer "
        "training will not help.",
        "用同样的配置运行 train.py --preflight：一分钟内检查目标、梯度和更新。继续训练没有用。",
    ),
    "not_learning_foreign": ("it knows nothing of this text", "模型对这种文本一无所知"),
    "not_learning_next_foreign": (
        "See that the weights, config.json and the tokenizer belong together, and give text of a language that it was "
        "trained on.",
        "确认权重、config.json 和分词器相互匹配，并给出它训练过的语言的文本。",
    ),
    "undertrained": ("too little training", "训练不足"),
    "undertrained_next": (
        "Train longer: several times the steps, more text before more epochs. The loss is still falling.",
        "延长训练：步数增加数倍，优先增加文本而不是轮数。损失仍在下降。",
    ),
    "overfitted": ("overfitted to its training text", "对训练文本过拟合"),
    "overfitted_next": (
        "Use more text or fewer epochs; --patience stops at the best validation loss, and model/ keeps that one.",
        "增加文本或减少轮数；--patience 会在验证损失最低处停下，model/ 保留的就是那一步。",
    ),
    "duplicates": ("duplicated training text", "训练文本重复"),
    "duplicates_next": (
        "Prepare the corpus again with --dedup near, and train on that.",
        "用 --dedup near 重新准备语料，再训练。",
    ),
    "repetitive_data": ("training text that repeats itself", "训练文本自身在重复"),
    "repetitive_data_next": (
        "Prepare the corpus again with --repetition drop, which leaves such documents out; report.json shows examples.",
        "用 --repetition drop 重新准备语料，去掉这类文档；report.json 里有例子。",
    ),
    "router_collapsed": ("collapsed experts", "专家坍缩"),
    "router_collapsed_next": (
        "Train again with a larger load-balancing loss (--router_aux_loss_coef; 0.01 is usual, the high rates of "
        "cpu_x2.json need 0.1), or without experts (--use_moe false).",
        "加大负载均衡损失重新训练（--router_aux_loss_coef：一般为 0.01，cpu_x2.json 的高学习率需要 0.1），"
        "或不用专家（--use_moe false）。",
    ),
    "decoding": ("greedy decoding", "贪心解码"),
    "decoding_next": ("Leave the model as it is and sample: {settings}.", "模型不用改，改用采样：{settings}。"),
    "targets_shifted": ("targets shifted too far", "训练目标错位"),
    "targets_shifted_next": (
        "Shift the targets by one, once: either the data or the model does it, not both. Then train again.",
        "目标只应右移一位，且只移一次：由数据或模型之一来做，不要两处都移。改好后重新训练。",
    ),
    "future_leak": ("it sees its answer (targets not shifted)", "模型看到了答案（目标没有右移）"),
    "future_leak_next": (
        "Make the targets the inputs shifted by one, and check the causal mask. Then train again.",
        "让目标等于输入右移一位，并检查因果掩码。改好后重新训练。",
    ),
    "padding_in_loss": ("padding counted in the loss", "填充被计入损失"),
    "padding_in_loss_next": (
        "Mask padding out of the loss (target -100), or pack documents end to end, which needs none. Then train again.",
        "把填充从损失中屏蔽（目标设为 -100），或首尾相接地打包文档，无需填充。改好后重新训练。",
    ),
    "rate_too_low": ("learning rate too low", "学习率过低"),
    "rate_too_low_next": (
        "Raise the learning rate, tenfold at first; for AdamW at this size 2e-4 to 2e-3 is usual.",
        "提高学习率，先提高到十倍；这种规模的 AdamW 常用 2e-4 到 2e-3。",
    ),
    "rate_too_high": ("learning rate too high", "学习率过高"),
    "rate_too_high_next": (
        "Lower the learning rate, to a tenth at first; for AdamW at this size 2e-4 to 2e-3 is usual.",
        "降低学习率，先降到十分之一；这种规模的 AdamW 常用 2e-4 到 2e-3。",
    ),
    "no_warmup": ("high learning rate without warm-up", "高学习率且没有预热"),
    "no_warmup_next": (
        "Give the schedule a warm-up (warmup_num_steps: 1 to 10 % of the steps), and try a lower peak rate.",
        "给学习率加上预热（warmup_num_steps：总步数的 1% 到 10%），并试试更低的峰值。",
    ),
    "gradients_kept": ("gradients not zeroed between steps", "梯度在步与步之间没有清零"),
    "gradients_kept_next": (
        "Zero the gradients after every optimizer step (engine.step() does, once per accumulation). Then train again.",
        "每次优化器更新后把梯度清零（engine.step() 会在每次累积结束时清零）。改好后重新训练。",
    ),
    "low_precision_weights": ("updates that round away", "更新被舍入掉了"),
    "low_precision_weights_next": (
        "Let the optimizer keep fp32 master weights: bf16 or fp16 through DeepSpeed's own block, not a model cast by "
        "hand.",
        "让优化器保留 fp32 主权重：通过 DeepSpeed 的 bf16 或 fp16 配置块启用，不要手动转换模型精度。",
    ),
    "embedding_scale": ("wrong scale at the start", "初始化尺度不对"),
    "embedding_scale_next": (
        "Start the embedding with a standard deviation of at most 0.02 (it is the output matrix too); the loss at "
        "step 0 must be near ln V.",
        "嵌入初始化的标准差不要超过 0.02（它同时是输出矩阵）；第 0 步的损失应接近 ln V。",
    ),
    "evaluation_differs": ("the evaluation does not measure this model", "评估测的不是这个模型"),
    "evaluation_differs_next": (
        "Evaluate in evaluation mode (model.eval(): no dropout), on the weights that are saved.",
        "在评估模式下（model.eval()：关闭 dropout）、用所保存的权重做评估。",
    ),
    "other_text": ("text of another kind than it was trained on", "文本与训练时不是同一类"),
    "other_text_next": (
        "Judge it on its own corpus: leave --data out, or give the folder that it was trained on.",
        "用它自己的语料来判断：去掉 --data，或给出训练时所用的目录。",
    ),
    "diverged": ("training diverged", "训练发散"),
    "diverged_next": (
        "Start again from the last good checkpoint with a lower learning rate and gradient clipping (1.0).",
        "从最后一个正常的检查点重新开始，降低学习率并使用梯度裁剪（1.0）。",
    ),
    # evidence
    "offsets": (
        "Its predictions fit the token {best} places ahead best: {nats:.2f} nats, against {next:.2f} for the next one.",
        "它的预测最符合往后第 {best} 个词元：{nats:.2f} 纳特，而对下一个词元是 {next:.2f}。",
    ),
    "offsets_present": (
        "Its predictions fit the token that it has just read: {nats:.2f} nats, against {next:.2f} for the next one.",
        "它的预测符合刚刚读到的那个词元：{nats:.2f} 纳特，而对下一个词元是 {next:.2f}。",
    ),
    "recorded_on": (
        "The run recorded a validation loss of {recorded:.2f}: on the same rows the model has {nats:.2f} for the token "
        "{offset} places ahead, and {next:.2f} for the next one.",
        "训练记录的验证损失是 {recorded:.2f}：在同样的文本上，模型对往后第 {offset} 个词元是 {nats:.2f}，"
        "对下一个词元是 {next:.2f}。",
    ),
    "recorded_below": (
        "The run recorded a training loss of {recorded:.2f}; on its training text the model has {measured:.2f}.",
        "训练记录的训练损失是 {recorded:.2f}；而模型在训练文本上实测为 {measured:.2f}。",
    ),
    "pad_after_end": (
        "Behind the end of a document it expects padding with a probability of {share:.0%}.",
        "文档结束之后，它预测填充的概率为 {share:.0%}。",
    ),
    "start_loss": (
        "Before the first step the loss was {start:.2f} nats; pure chance is {chance:.2f}.",
        "第一步之前损失就有 {start:.2f} 纳特；纯粹乱猜是 {chance:.2f}。",
    ),
    "unchanged": (
        "{share:.0%} of the optimizer's weights did not change from one line of the log to the next.",
        "从一行日志到下一行，优化器的权重有 {share:.0%} 完全没有变化。",
    ),
    "grad_growth": (
        "The gradient norm grew steadily from {first:.2g} to {last:.2g} ({times:.0f} times).",
        "梯度范数从 {first:.2g} 持续增长到 {last:.2g}（{times:.0f} 倍）。",
    ),
    "small_steps": (
        "At its fastest a step changed the weights by {ratio:.4%} of their size; 1 % is usual.",
        "最快时每一步也只让权重改变自身大小的 {ratio:.4%}；通常约为 1%。",
    ),
    "barely_moved": (
        "After {steps:,} steps the weights are only {share:.1%} away from where they began.",
        "经过 {steps:,} 步，权重离起点只有 {share:.1%}。",
    ),
    "peak_rate": ("The learning rate rose to {rate:.2g}.", "学习率最高到 {rate:.2g}。"),
    "large_steps": (
        "At its fastest a step changed the weights by {ratio:.0%} of their size; 1 % is usual.",
        "最快时每一步让权重改变自身大小的 {ratio:.0%}；通常约为 1%。",
    ),
    "train_low_val_high": (
        "The training loss ended at {train:.2f} while the validation loss was {val:.2f}, worse than token frequencies.",
        "训练损失最后降到 {train:.2f}，而验证损失是 {val:.2f}，比只知道词元频率还差。",
    ),
    "overgrown": (
        "The weights are {times:.0f} times as large as they began: the steps have swamped what they were.",
        "权重变成了起始大小的 {times:.0f} 倍：更新淹没了原有的内容。",
    ),
    "loss_jumped": (
        "The training loss jumped from {start:.2f} at the start to {peak:.2f}.",
        "训练损失从开始的 {start:.2f} 跳到了 {peak:.2f}。",
    ),
    "no_warmup_steps": ("The schedule has no warm-up.", "学习率没有预热。"),
    "not_finite": ("The model's output is not finite.", "模型的输出不是有限数。"),
    "loss_lost": ("From step {step:,} on the loss was not finite.", "从第 {step:,} 步起损失不再是有限数。"),
    "loss_stayed_up": (
        "The validation loss was {best:.2f} at step {step:,} and stayed near {last:.2f} after that.",
        "验证损失在第 {step:,} 步为 {best:.2f}，之后一直停留在 {last:.2f} 附近。",
    ),
    "evaluation": (
        "The run recorded a validation loss of {recorded:.3f} for these weights; on the same rows they have "
        "{measured:.3f}.",
        "训练为这些权重记录的验证损失是 {recorded:.3f}；在同样的数据上实测为 {measured:.3f}。",
    ),
    "other_text_loss": (
        "On its own validation text the run recorded a loss of {recorded:.2f}; on this text the model has "
        "{measured:.2f}.",
        "训练在自己的验证文本上记录的损失是 {recorded:.2f}；在这份文本上实测为 {measured:.2f}。",
    ),
    "dead_experts": (
        "{dead} of {total} experts get almost no tokens; the busiest takes {busiest:.0%} of its layer's.",
        "{total} 个专家中有 {dead} 个几乎分不到词元；最忙的一个占了所在层的 {busiest:.0%}。",
    ),
    "duplicates_found": (
        "{share:.0%} of the training documents are exact copies of others; one stands there {copies:,} times.",
        "训练文档中有 {share:.0%} 与别的文档完全相同；同一篇最多出现 {copies:,} 次。",
    ),
    "near_duplicates": (
        "{share:.0%} of the training documents are near copies of others.",
        "训练文档中有 {share:.0%} 与别的文档近似重复。",
    ),
    "gap": (
        "Loss {train:.2f} on its training text, {held_out:.2f} on held-out text.",
        "训练文本上的损失 {train:.2f}，留出文本上 {held_out:.2f}。",
    ),
    "val_risen": (
        "The validation loss was {best:.2f} at step {step:,} and rose to {last:.2f} while the training loss fell.",
        "验证损失在第 {step:,} 步为 {best:.2f}，随后升到 {last:.2f}，而训练损失还在下降。",
    ),
    "repetitive": (
        "{share:.0%} of the training text, in windows of 128 tokens, repeats more than half of its 4-grams.",
        "以 128 个词元为窗口，{share:.0%} 的训练文本有一半以上的四元组是重复的。",
    ),
    "true_repeats": (
        "Held-out true text repeats {share:.0%} of its 4-grams too.",
        "留出的真实文本本身也有 {share:.0%} 的四元组重复。",
    ),
    "still_falling": (
        "From step {half:,} to step {end:,} the loss fell by {won:.2f} nats and was still falling.",
        "从第 {half:,} 步到第 {end:,} 步损失下降了 {won:.2f} 纳特，而且还在下降。",
    ),
    "tokens_per_parameter": (
        "It has seen {tokens:,} tokens, {ratio:.1f} for each parameter; some 20 are usual.",
        "它只看过 {tokens:,} 个词元，平均每个参数 {ratio:.1f} 个；通常约为 20 个。",
    ),
    "above_unigram": (
        "Its loss of {loss:.2f} is above the {unigram:.2f} of bare token frequencies.",
        "它的损失 {loss:.2f} 高于只知道词元频率时的 {unigram:.2f}。",
    ),
    "greedy_loops": (
        "{greedy:.0%} of its greedy texts end in a loop ({true:.0%} of the true ones); sampled ones do not.",
        "贪心解码的文本有 {greedy:.0%} 以循环结尾（真实文本为 {true:.0%}）；采样的文本没有这个问题。",
    ),
    # decoding
    "settings_greedy": ("greedy, repetition penalty {repetition_penalty:g}", "贪心，重复惩罚 {repetition_penalty:g}"),
    "settings": (
        "temperature {temperature:g}, top-p {top_p:g}, repetition penalty {repetition_penalty:g}",
        "温度 {temperature:g}，top-p {top_p:g}，重复惩罚 {repetition_penalty:g}",
    ),
    "grid_best": ("Nearest to true text: {settings}.", "最接近真实文本的设置：{settings}。"),
    # notes
    "preflight_failed": ("Preflight had failed: {text}", "训练前检查有一项未通过：{text}"),
    "note_no_model": (
        "No model/ in the run yet: only its records were judged.",
        "训练目录里还没有 model/：只根据训练记录判断。",
    ),
    "note_no_text": (
        "The run's corpus {corpus} was not found: give it with --data to measure the model.",
        "找不到训练所用的语料 {corpus}：请用 --data 指定，才能测量模型。",
    ),
    "note_no_corpus": (
        "The run does not name its corpus: give it with --data to measure the model.",
        "训练目录没有记录所用语料：请用 --data 指定，才能测量模型。",
    ),
    "note_no_held_out": (
        "The corpus holds nothing out, so loss and repetition could not be measured on unseen text.",
        "语料没有留出部分，因此无法在未见过的文本上测量损失和重复率。",
    ),
    "note_going_on": (
        "The run is at step {step:,} of {total:,}: judged as far as it has come.",
        "训练进行到第 {step:,} 步，共 {total:,} 步：按目前的状态判断。",
    ),
    "note_other_text": (
        "Judged on {name}, which is not the run's own corpus.",
        "所用文本是 {name}，不是这次训练自己的语料。",
    ),
    "note_seen": (
        "The model may have been trained on the text that is held out here.",
        "这里留出的文本，模型在训练时可能已经见过。",
    ),
    "note_grid_cut": (
        "The model is slow here: {count} decoding settings were tried instead of {all}.",
        "模型在本机上较慢：只试了 {count} 种解码设置（共 {all} 种）。",
    ),
    "note_no_prompts": (
        "The held-out text is too short for prompts: nothing was written.",
        "留出的文本太短，无法取提示词，因此没有生成文本。",
    ),
    # progress
    "doing_model": ("reading the model", "读取模型"),
    "doing_text": ("reading the text", "读取文本"),
    "doing_losses": ("measuring losses", "测量损失"),
    "doing_data": ("looking through the training text", "检查训练文本"),
    "doing_writing": ("writing {count} texts, sampled and greedy", "生成 {count} 段文本：采样与贪心"),
    "doing_grid": (
        "comparing decoding settings, about {seconds:.0f} s (--quick leaves this out)",
        "比较各种解码设置，约 {seconds:.0f} 秒（--quick 可跳过）",
    ),
    # the terminal
    "term_subject": (
        "{path}: {parameters} parameters, vocabulary {vocab:,}",
        "{path}：参数 {parameters}，词表 {vocab:,}",
    ),
    "term_step": ("step {step:,} of {total:,}", "第 {step:,} 步，共 {total:,} 步"),
    "term_text": ("text: {data}", "文本：{data}"),
    "term_why": ("Why", "原因"),
    "term_next": ("next: {next}", "下一步：{next}"),
    "term_cause": ("{number}. {title} ({confidence:.0%} sure)", "{number}. {title}（把握 {confidence:.0%}）"),
    "term_ladder": ("Where it stands (held-out loss)", "所处位置（留出文本上的损失）"),
    "term_nats": ("nats a token", "纳特/词元"),
    "term_bits": ("bits a byte", "比特/字节"),
    "term_model": ("this model", "本模型"),
    "term_train": ("its training text", "其训练文本"),
    "term_repetition": ("Does it parrot?", "是否复读"),
    "term_col_repetition": ("repeated", "重复率"),
    "term_col_copying": ("copied", "照抄率"),
    "term_col_distinct_2": ("distinct-2", "distinct-2"),
    "term_col_loops": ("loops", "循环"),
    "term_decoding": ("Decoding", "解码"),
    "term_notes": ("Notes", "说明"),
    "term_written": ("written: {path}", "已写入：{path}"),
}


class Words:
    """The words of one language; `words(key, **values)`."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._place = LANGUAGES.index(language)

    def __call__(self, key: str, **values: Any) -> str:
        """The sentence `key` with its values filled in."""
        return WORDS[key][self._place].format(**values)
