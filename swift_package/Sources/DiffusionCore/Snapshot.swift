/// One picture to make.
public struct PictureRequest: Sendable, Equatable, Codable {
  /// What to show.
  public var prompt: String
  /// What not to show; empty: guidance is against the empty prompt.
  public var negativePrompt: String
  /// The same seed gives the same picture.
  public var seed: UInt32
  /// The walk.
  public var sampler: SamplerSettings
  /// Side of the highest level to run; nil: all.
  public var stopAt: Int?

  /// A request with the defaults of `mdm sample`.
  public init(
    prompt: String, negativePrompt: String = "", seed: UInt32 = 0,
    sampler: SamplerSettings = SamplerSettings(), stopAt: Int? = nil
  ) {
    (self.prompt, self.negativePrompt, self.seed) = (prompt, negativePrompt, seed)
    (self.sampler, self.stopAt) = (sampler, stopAt)
  }
}

/// A run between two steps; from here it goes on to the picture it would have become.
///
/// Encodes to a few times the bytes of the pictures; keep it in memory or in a file.
public struct Snapshot: Sendable, Equatable, Codable {
  /// The digest of the bundle that it belongs to.
  public let bundleDigest: String
  /// What is being made.
  public let request: PictureRequest
  /// Steps that are done.
  public let stepsDone: Int
  /// The state of every level, highest first.
  public let states: [Tensor]
  /// How often noise was drawn.
  public let draws: Int
  /// Memory of the solver.
  public let history: Sampler.History?

  package init(
    bundleDigest: String, request: PictureRequest, stepsDone: Int, states: [Tensor], draws: Int,
    history: Sampler.History?
  ) {
    (self.bundleDigest, self.request, self.stepsDone) = (bundleDigest, request, stepsDone)
    (self.states, self.draws, self.history) = (states, draws, history)
  }
}
