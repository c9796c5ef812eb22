/// The available samplers.
public enum SamplerKind: String, CaseIterable, Sendable, Codable {
  /// Ancestral sampling.
  case ddpm
  /// Deterministic, or with noise as set by `eta`.
  case ddim
  /// DPM-Solver++ 2M.
  case dpmpp
  /// One to four jumps of a distilled model.
  case student
}

/// A sampler and its parameters.
public struct SamplerSettings: Sendable, Equatable, Codable {
  /// The kind of sampler.
  public var kind: SamplerKind
  /// Number of steps; nil: the whole table.
  public var steps: Int?
  /// Amount of noise for ddim, 0 to 1.
  public var eta: Double
  /// Guidance weight; 1 turns guidance off.
  public var guidanceScale: Double
  /// Thresholding; nil: the thresholding that the model was made with.
  public var threshold: Manifest.Threshold?
  /// The spacing of the table indices that are visited.
  public var grid: NoiseSchedule.Grid

  /// Settings with the defaults of `mdm sample`.
  public init(
    kind: SamplerKind = .ddim, steps: Int? = 50, eta: Double = 0, guidanceScale: Double = 1,
    threshold: Manifest.Threshold? = nil, grid: NoiseSchedule.Grid = .even
  ) {
    (self.kind, self.steps, self.eta) = (kind, steps, eta)
    (self.guidanceScale, self.threshold, self.grid) = (guidanceScale, threshold, grid)
  }

  /// Whether a step adds noise. Deterministic samplers need only the initial noise.
  public var drawsNoise: Bool { kind == .ddpm || (kind == .ddim && eta > 0) }

  /// Refuses numbers out of range.
  package func check() throws {
    guard (0...1).contains(eta) else {
      throw MatryoshkaError.invalidArgument(name: "eta", reason: "expected 0 to 1, got \(eta)")
    }
    guard (-100...100).contains(guidanceScale) else {
      throw MatryoshkaError.invalidArgument(
        name: "guidance", reason: "expected -100 to 100, got \(guidanceScale)")
    }
  }
}
