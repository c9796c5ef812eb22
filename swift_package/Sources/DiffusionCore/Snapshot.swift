/// A request for one picture.
public struct PictureRequest: Sendable, Equatable, Codable {
  /// The prompt.
  public var prompt: String
  /// The negative prompt; if empty, guidance is relative to the empty prompt.
  public var negativePrompt: String
  /// The same seed gives the same picture.
  public var seed: UInt32
  /// The sampler and its parameters.
  public var sampler: SamplerSettings
  /// Side of the highest level to run; nil: all levels. A level of a clip counts with all its frames: 64
  /// stands for 16 frames of 16 pixels, in four rows.
  public var stopAt: Int?

  /// Creates a request with the defaults of `mdm sample`.
  public init(
    prompt: String, negativePrompt: String = "", seed: UInt32 = 0,
    sampler: SamplerSettings = SamplerSettings(), stopAt: Int? = nil
  ) {
    (self.prompt, self.negativePrompt, self.seed) = (prompt, negativePrompt, seed)
    (self.sampler, self.stopAt) = (sampler, stopAt)
  }
}

/// What to make a clip from: the same as for a picture.
public typealias ClipRequest = PictureRequest

/// The state of a run between two steps. Resuming gives the same picture as an uninterrupted run.
///
/// An encoded snapshot takes a few times the bytes of the pictures. Keep it in memory or in a file.
public struct Snapshot: Sendable, Equatable, Codable {
  /// The digest of the snapshot's bundle.
  public let bundleDigest: String
  /// The request.
  public let request: PictureRequest
  /// Number of steps done.
  public let stepsDone: Int
  /// The noisy picture of every level, highest first.
  public let states: [Tensor]
  /// Number of noise draws so far.
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
