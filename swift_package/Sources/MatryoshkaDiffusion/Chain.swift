import DiffusionCore

/// Runs the packages of a bundle in order and wires them by name, for every layout.
struct Chain: Sendable {
  let bundle: BundleFolder
  let runtime: any PackageRuntime
  let texts: TextMemory
  let policy: MemoryPolicy
  /// Called between packages; it throws if the run is to end there.
  let pause: @Sendable () throws -> Void

  /// The texts of a run.
  struct Captions: Sendable {
    let prompt: String
    /// nil: no guidance, one evaluation per step.
    let negative: String?
    let scale: Double

    var all: [String] { [prompt] + [negative].compactMap { $0 } }
  }

  /// A caption that is loaded into its context, and the row it adds to every time embedding.
  struct Conditioning: Sendable {
    let context: Int
    let pooled: Tensor?
    let scale: Double
  }

  /// Loads every caption into its own context.
  func condition(
    _ captions: Captions, _ cache: EmbeddingCache?
  ) async throws -> [Conditioning] {
    guard let text = bundle.manifest.text else {
      return [Conditioning(context: 0, pooled: nil, scale: 1)]
    }
    var inputs: [[String: Tensor]]
    if let cache {
      inputs = try captions.all.map {
        let (values, mask) = try cache.features(of: $0)
        return [FeatureName.textFeatures: values, FeatureName.textMask: mask]
      }
    } else {
      inputs = try await encoded(captions.all, text)
    }
    if text.padding == .longest {
      let seen = try seenPadding(inputs, text)
      for context in inputs.indices { inputs[context][FeatureName.textSeen] = seen }
    }
    try await run(.prompt, inputs)
    var out: [Conditioning] = []
    for context in inputs.indices {
      let pooled = try await runtime.value(FeatureName.pooled, context: context)
      out.append(Conditioning(context: context, pooled: pooled, scale: captions.scale))
    }
    return out
  }

  /// 1 up to the longest caption of the picture, 0 after it: (1, maxTokens). It is the same for the
  /// prompt and the negative prompt, so what a caption becomes depends on the caption beside it.
  private func seenPadding(_ captions: [[String: Tensor]], _ text: Manifest.Text) throws -> Tensor {
    let lengths = captions.map { $0[FeatureName.textMask]?.values.count { $0 > 0 } ?? 0 }
    let longest = lengths.max() ?? 0
    return try Tensor(
      shape: [1, text.maxTokens], values: (0..<text.maxTokens).map { $0 < longest ? 1 : 0 })
  }

  /// Predictions of the levels from `firstLevel` on, with guidance applied.
  func predict(
    _ states: [Tensor], time: Int, jump: BundleFolder.Jump?, firstLevel: Int,
    _ prompts: [Conditioning]
  ) async throws -> [Tensor] {
    let levels = Array(bundle.manifest.levels[firstLevel...])
    let inputs = try prompts.map { prompt in
      try embedded(levels, states, time, jump, prompt).merging(nothingFromAbove(firstLevel)) { $1 }
    }
    try await run(.step, inputs, largest: levels[0].side)
    var out: [Tensor] = []
    for (level, state) in zip(levels, states) {
      var answer = try await runtime.value(level.prediction, context: 0)
      if prompts.count > 1 {
        let base = try await runtime.value(level.prediction, context: 1)
        try check(base, level.prediction, like: state)
        try check(answer, level.prediction, like: state)
        Diffusion.guide(&answer.values, unconditional: base.values, scale: prompts[0].scale)
      }
      try check(answer, level.prediction, like: state)
      out.append(answer)
    }
    return out
  }

  private func embedded(
    _ levels: [Manifest.Level], _ states: [Tensor], _ time: Int, _ jump: BundleFolder.Jump?,
    _ prompt: Conditioning
  ) throws -> [String: Tensor] {
    var values: [String: Tensor] = [:]
    for (level, state) in zip(levels, states) {
      var temb = try bundle.timeEmbedding(level, time, jump: jump)
      if let pooled = prompt.pooled {
        try check(pooled, FeatureName.pooled, like: temb)
        temb.values = zip(temb.values, pooled.values).map { $0 + $1 }
      }
      values[level.image] = state
      values[level.temb] = temb
    }
    return values
  }

  /// Zeros in place of the features from the level above the highest one that runs. A function that
  /// stops there has no such input.
  private func nothingFromAbove(_ firstLevel: Int) throws -> [String: Tensor] {
    let manifest = bundle.manifest
    guard firstLevel > 0, manifest.layout != .multifunction,
      let name = manifest.levels[firstLevel].features
    else { return [:] }
    guard let feature = manifest.packages.flatMap(\.inputs).first(where: { $0.name == name }) else {
      throw MatryoshkaError.invalidManifest(
        field: "packages", reason: "lists no package that takes \(name)")
    }
    return [name: try Tensor(zeros: feature.shape)]
  }

  /// The captions as the packages of the phase `prompt` take them. The encoder reads only those that
  /// it did not read for the last picture.
  private func encoded(
    _ captions: [String], _ text: Manifest.Text
  ) async throws -> [[String: Tensor]] {
    var known: [String: TextMemory.Text] = [:]
    guard remembersTexts else {
      for caption in captions { known[caption] = try texts.tokens(of: caption, text) }
      texts.remember(known)
      let inputs = captions.compactMap { known[$0]?.values }
      try await run(.text, inputs)
      return inputs
    }
    for caption in captions { known[caption] = texts.encoded(caption) }
    var missing: [String] = []
    for caption in captions where known[caption] == nil && !missing.contains(caption) {
      known[caption] = try texts.tokens(of: caption, text)
      missing.append(caption)
    }
    if !missing.isEmpty {
      try await run(.text, missing.compactMap { known[$0]?.values })
      for (context, caption) in missing.enumerated() {
        for name in encodings {
          known[caption]?.values[name] = try await runtime.value(name, context: context)
        }
      }
      texts.remember(known)
    }
    return captions.compactMap { known[$0]?.values }
  }

  /// What the text encoder puts out for other packages.
  private var encodings: Set<String> {
    let packages = bundle.manifest.packages
    let made = Set(packages.filter { $0.phase == .text }.flatMap(\.outputs).map(\.name))
    return made.intersection(packages.filter { $0.phase != .text }.flatMap(\.inputs).map(\.name))
  }

  /// A package of the phase `step` that reads the text by itself finds it in its context only if the
  /// encoder, or a package of the phase `prompt`, was given it there for this picture.
  private var remembersTexts: Bool {
    func inputs(_ phase: Manifest.Phase) -> Set<String> {
      Set(bundle.manifest.packages.filter { $0.phase == phase }.flatMap(\.inputs).map(\.name))
    }
    let ofTexts = encodings.union([FeatureName.tokenIDs, FeatureName.textMask])
    return inputs(.step).intersection(ofTexts).isSubset(of: inputs(.prompt))
  }

  /// Runs the packages of a phase for every context.
  private func run(
    _ phase: Manifest.Phase, _ inputs: [[String: Tensor]], largest: Int? = nil
  ) async throws {
    if policy == .staged { await keepOnly(phase) }
    for package in bundle.manifest.packages(of: phase, upTo: largest) {
      try pause()
      try await runtime.load(package)
      for (context, values) in inputs.enumerated() {
        try pause()
        let wanted = Set(package.inputs.map(\.name))
        try await runtime.run(package, context: context, giving: values.filter { wanted.contains($0.key) })
      }
      if policy == .minimal { await runtime.unload(package) }
    }
    try pause()
  }

  private func keepOnly(_ phase: Manifest.Phase) async {
    for package in bundle.manifest.packages where package.phase != phase {
      await runtime.unload(package)
    }
  }

  private func check(_ found: Tensor, _ name: String, like expected: Tensor) throws {
    guard found.shape == expected.shape else {
      throw MatryoshkaError.packageFailed(
        package: name, reason: "expected the shape \(expected.shape), got \(found.shape)")
    }
  }
}
