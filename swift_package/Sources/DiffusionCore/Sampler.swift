/// The walk from noise to a picture, one step per evaluation of the network.
///
/// A value type: its state is exactly the state that a snapshot must keep.
public struct Sampler: Sendable {
  /// The memory of DPM-Solver++: the last clean estimate per level and its step in half log-SNR.
  public struct History: Sendable, Equatable, Codable {
    /// The last clean estimates, highest level first.
    public let cleanEstimates: [Tensor]
    /// Half the increase of the log-SNR.
    public let step: Double
  }

  private let schedule: NoiseSchedule
  private let settings: SamplerSettings
  private let prediction: Manifest.Prediction
  private let threshold: Manifest.Threshold
  private let imageScales: [Double]
  /// Table indices, noisiest first; the last is 0.
  public let indices: [Int]
  /// Number of steps done.
  public package(set) var stepsDone = 0
  /// Memory of DPM-Solver++; nil for the other samplers.
  public package(set) var history: History?

  /// - Parameters:
  ///   - schedule: one table per level, highest first.
  ///   - imageScales: per level, the factor that turns a clean estimate into a picture in [-1, 1].
  ///   - starts: the table indices that a student learned to jump from, noisiest first.
  ///   - begin: so many of the first steps, or of a student's starts, are left out.
  public init(
    schedule: NoiseSchedule, settings: SamplerSettings, prediction: Manifest.Prediction,
    threshold: Manifest.Threshold, imageScales: [Double], starts: [Int] = [], begin: Int = 0
  ) throws {
    try settings.check()
    guard schedule.tables.count == imageScales.count, imageScales.allSatisfy({ $0 > 0 }) else {
      throw MatryoshkaError.invalidArgument(
        name: "imageScales", reason: "expected one above 0 for each level")
    }
    (self.schedule, self.settings, self.prediction) = (schedule, settings, prediction)
    self.threshold = settings.threshold ?? threshold
    self.imageScales = imageScales
    indices =
      settings.kind == .student
      ? try Sampler.studentIndices(starts, steps: settings.steps, table: schedule.numSteps, begin)
      : try Array(schedule.indices(steps: settings.steps, grid: settings.grid).dropFirst(begin))
  }

  /// Total number of steps.
  public var total: Int { indices.count - 1 }
  /// Whether the last step is done.
  public var isFinished: Bool { stepsDone == total }
  /// Table index of the state before the next step. The network receives one less.
  public var index: Int { indices[stepsDone] }
  /// Table index of the state after the next step, which is the target of a student's jump.
  public var nextIndex: Int { indices[stepsDone + 1] }

  /// Noise of the state before the next step, as `alpha_bar` of each level.
  package var alphaBars: [Double] { schedule.tables.map { $0[index] } }

  /// Takes one step.
  ///
  /// - Parameters:
  ///   - x: the noisy pictures; replaced by the cleaner ones.
  ///   - prediction: the network's prediction, with guidance applied.
  ///   - noise: required if the settings draw noise.
  /// - Returns: the clean estimate of every level.
  public mutating func step(
    _ x: inout [Tensor], prediction: consuming [Tensor], noise: [Tensor]?
  ) throws -> [Tensor] {
    try step(&x, prediction: prediction, noise: noise, constraint: nil)
  }

  /// The same; `constraint` is what is known of the picture.
  package mutating func step(
    _ x: inout [Tensor], prediction: consuming [Tensor], noise: [Tensor]?, constraint: Constraint?
  ) throws -> [Tensor] {
    try check(x, prediction, noise)
    let (now, next) = (indices[stepsDone], indices[stepsDone + 1])
    var x0 = prediction
    for level in x.indices {
      Diffusion.cleanEstimate(
        of: &x0[level].values, at: x[level].values, alphaBar: schedule.tables[level][now],
        kind: self.prediction)
      if settings.kind != .student {  // a student's answer is a mean that is already in range
        Thresholding.apply(threshold, to: &x0[level].values, signal: imageScales[level])
      }
    }
    constraint?.estimate(&x0)
    let towards = settings.kind == .dpmpp ? extrapolated(x0, now, next) : x0
    for level in x.indices {
      let (from, to) = (schedule.tables[level][now], schedule.tables[level][next])
      let target = towards[level].values
      switch settings.kind {
      case .dpmpp, .student:
        Diffusion.dpmpp(&x[level].values, towards: target, from: from, to: to)
      case .ddim:
        Diffusion.ddim(
          &x[level].values, towards: target, noise: noise?[level].values, from: from, to: to,
          eta: settings.eta)
      case .ddpm:
        Diffusion.ddpm(
          &x[level].values, towards: target, noise: noise?[level].values ?? [], from: from, to: to)
      }
    }
    stepsDone += 1
    return x0
  }

  private mutating func extrapolated(_ x0: [Tensor], _ now: Int, _ next: Int) -> [Tensor] {
    let step = (schedule.logSNR(next) - schedule.logSNR(now)) / 2
    defer { history = History(cleanEstimates: x0, step: step) }
    guard let history, step != .infinity else { return x0 }  // the first step and the last
    var out = x0
    for level in out.indices {
      Diffusion.extrapolate(
        &out[level].values, before: history.cleanEstimates[level].values, step: step,
        stepBefore: history.step)
    }
    return out
  }

  private func check(_ x: [Tensor], _ prediction: [Tensor], _ noise: [Tensor]?) throws {
    func refuse(_ name: String, _ reason: String) -> MatryoshkaError {
      .invalidArgument(name: name, reason: reason)
    }
    guard !isFinished else { throw refuse("step", "all steps are done") }
    guard x.count == imageScales.count else { throw refuse("x", "expected one picture per level") }
    let shapes = x.map(\.shape)
    guard prediction.map(\.shape) == shapes else {
      throw refuse("prediction", "its shapes differ from the pictures' shapes")
    }
    if let noise, noise.map(\.shape) != shapes {
      throw refuse("noise", "its shapes differ from the pictures' shapes")
    }
    if settings.drawsNoise && noise == nil { throw refuse("noise", "this sampler needs noise") }
    if let history, history.cleanEstimates.map(\.shape) != shapes {
      throw refuse("history", "its shapes differ from the pictures' shapes")
    }
  }

  /// Table indices that a student visits in `steps` steps. Refuses other numbers of steps.
  private static func studentIndices(
    _ starts: [Int], steps: Int?, table: Int, _ begin: Int
  ) throws -> [Int] {
    let falls = zip(starts, starts.dropFirst()).allSatisfy { $0 > $1 }
    guard let first = starts.first, let last = starts.last, falls, last >= 1, first <= table else {
      throw MatryoshkaError.invalidArgument(name: "sampler", reason: "the model is not a student")
    }
    guard let steps, steps >= 1, starts.count % steps == 0 else {
      let known = (1...starts.count).filter { starts.count % $0 == 0 }
      throw MatryoshkaError.invalidArgument(
        name: "steps", reason: "this student takes \(known), got \(steps.map(String.init) ?? "all")")
    }
    return stride(from: begin, to: starts.count, by: starts.count / steps).map { starts[$0] } + [0]
  }
}
