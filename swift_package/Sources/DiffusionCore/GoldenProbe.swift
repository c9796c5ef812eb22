import Foundation

/// One moment of a bundle's golden record: what the network was given, and what it predicted in torch
/// when the bundle was made.
package struct GoldenProbe: Sendable {
  /// By name of the feature: tokens if the bundle encodes text, else features, and their masks.
  private let text: [String: Tensor]
  private let time: Int
  private let jump: BundleFolder.Jump?
  /// Of the levels, highest first.
  private let states: [Tensor]
  private let predictions: [Tensor]

  private static let context = 0

  /// Reads the first prompt at the middle of the recorded noise levels, where the network has most to do.
  /// Throws ``MatryoshkaError/invalidTensorFile(reason:)`` if the record lacks something.
  package init(of bundle: BundleFolder) throws {
    let manifest = bundle.manifest
    let record = try TensorFile(url: bundle.url.appending(path: manifest.golden.path))
    let moment = manifest.golden.times.count / 2
    time = manifest.golden.times[moment] - 1
    if let student = manifest.student {
      let targets = try record.integers("targets")
      guard targets.indices.contains(moment) else {
        throw MatryoshkaError.invalidTensorFile(reason: "has too few targets")
      }
      // The weight that the record was made with.
      jump = BundleFolder.Jump(target: Int(targets[moment]), weight: student.weights.first ?? 1)
    } else {
      jump = nil
    }
    // Each is (times, prompts, 3, side, side).
    func levels(_ name: String) throws -> [Tensor] {
      try bundle.sides.map { side in
        let part = try record.part("\(name)_\(side)", at: [moment, 0])
        return try Tensor.picture(side: side, values: part.values)
      }
    }
    states = try levels("x_t")
    predictions = try levels("prediction")
    text = try manifest.text.map { try GoldenProbe.text(record, $0) } ?? [:]
  }

  /// The decibels that a runtime must reach: 40, less if the weights are compressed, which those of the
  /// record are not.
  package static func floor(of manifest: Manifest) -> Double {
    switch manifest.packages.map(\.weightBits).min() ?? 16 {
    case 16: 40
    case 8: 30
    case 6: 20
    case 4: 8
    case 3: 4
    default: 0
    }
  }

  private static func text(_ record: TensorFile, _ text: Manifest.Text) throws -> [String: Tensor] {
    let encodes = text.encoder != nil && record.entries[FeatureName.tokenIDs] != nil
    var names = [FeatureName.textMask, encodes ? FeatureName.tokenIDs : FeatureName.textFeatures]
    if text.padding == .longest { names.append(FeatureName.textSeen) }
    var found: [String: Tensor] = [:]
    for name in names {
      let first = try record.part(name, at: [0])
      found[name] = try Tensor(shape: [1] + first.shape, values: first.values)
    }
    return found
  }

  /// How close a runtime of the bundle comes to the record, in decibels below the largest recorded
  /// number, at the worst level; infinite if it is equal, minus infinity if a number is not finite.
  ///
  /// It loads one package at a time and leaves none loaded. Not to be called while a picture is made.
  package func closeness(of runtime: any PackageRuntime, in bundle: BundleFolder) async throws -> Double {
    var given = text
    if !text.isEmpty {
      if text[FeatureName.textFeatures] == nil { try await run(.text, given, runtime, bundle) }
      try await run(.prompt, given, runtime, bundle)
    }
    let pooled = text.isEmpty ? nil : try await runtime.value(FeatureName.pooled, context: Self.context)
    for (level, state) in zip(bundle.manifest.levels, states) {
      var embedding = try bundle.timeEmbedding(level, time, jump: jump)
      if let pooled { embedding.values = zip(embedding.values, pooled.values).map { $0 + $1 } }
      given[level.image] = state
      given[level.temb] = embedding
    }
    try await run(.step, given, runtime, bundle)
    var worst = Double.infinity
    for (level, wanted) in zip(bundle.manifest.levels, predictions) {
      let answer = try await runtime.value(level.prediction, context: Self.context)
      worst = min(worst, GoldenProbe.decibels(wanted.values, answer.values))
    }
    return worst
  }

  private func run(
    _ phase: Manifest.Phase, _ given: [String: Tensor], _ runtime: any PackageRuntime,
    _ bundle: BundleFolder
  ) async throws {
    for package in bundle.manifest.packages(of: phase) {
      let wanted = Set(package.inputs.map(\.name))
      try await runtime.load(package)
      do {
        try await runtime.run(
          package, context: Self.context, giving: given.filter { wanted.contains($0.key) })
      } catch {
        await runtime.unload(package)
        throw error
      }
      await runtime.unload(package)
    }
  }

  private static func decibels(_ wanted: [Float], _ got: [Float]) -> Double {
    guard wanted.count == got.count, got.allSatisfy(\.isFinite) else { return -.infinity }
    let squares = zip(wanted, got).reduce(0.0) { sum, pair in
      let difference = Double(pair.0) - Double(pair.1)
      return sum + difference * difference
    }
    guard squares > 0 else { return .infinity }
    let peak = wanted.reduce(0.0) { max($0, Double(abs($1))) }
    return 20 * log10(peak / (squares / Double(wanted.count)).squareRoot())
  }
}
