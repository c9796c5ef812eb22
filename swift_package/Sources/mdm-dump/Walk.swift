import DiffusionCore
import Foundation

/// Runs a sampler with a denoiser known in closed form and writes every step.
///
/// Each pixel of the pictures is +mean or -mean, equally likely, plus a normal of the given spread.
enum Walk {
  private struct Case: Decodable {
    let seed: UInt32
    let sides: [Int]
    let settings: SamplerSettings
    let prediction: Manifest.Prediction
    let threshold: Manifest.Threshold
    let signals: [Double]
    let starts: [Int]
    let mean: Double
    let spread: Double
    /// A picture that is given, as bytes, and what a request says of it; absent: none.
    var image: [UInt8]?
    var mask: [UInt8]?
    var strength: Double?
    var level: Int?
    /// Predict a quarter of the state, which rounds alike everywhere.
    var isPlain: Bool?

    var request: PictureRequest {
      get throws {
        func picture(_ rgb: [UInt8]) throws -> Picture {
          let side = level ?? sides[0]
          return try Picture(width: side, height: side, rgb: rgb)
        }
        return try PictureRequest(
          prompt: "", image: image.map(picture), strength: strength, mask: mask.map(picture),
          level: level)
      }
    }
  }

  static func run(_ path: String, tables: String, out: String) throws {
    let given = try JSONDecoder().decode(Case.self, from: Data(contentsOf: URL(filePath: path)))
    let file = try TensorFile(url: URL(filePath: tables))
    let schedule = try NoiseSchedule(
      base: file.doubles("base"),
      tables: given.sides.indices.map { try file.doubles("level_\($0)") })
    let picture = try GivenPicture(given.request, sides: given.sides, signals: given.signals)
    let steps = given.settings.steps ?? schedule.numSteps
    let begin =
      given.starts.isEmpty
      ? picture?.begin(steps: steps)
      : try picture?.begin(starts: given.starts, table: schedule.numSteps)
    var sampler = try Sampler(
      schedule: schedule, settings: given.settings, prediction: given.prediction,
      threshold: given.threshold, imageScales: given.signals, starts: given.starts,
      begin: begin ?? 0)
    var noise = NoiseStream(seed: given.seed, sides: given.sides)
    var x = try noise.draw()
    let constraint = picture?.constraint(noise: x)
    x = try picture?.states(noise: x, alphaBars: sampler.alphaBars) ?? x
    var written: [(name: String, tensor: Tensor)] = []
    while !sampler.isFinished {
      let step = sampler.stepsDone
      constraint?.replace(&x, alphaBars: sampler.alphaBars)
      let answer = try x.enumerated().map { level, state in
        try predict(state, schedule.tables[level][sampler.index], given)
      }
      let draw = given.settings.drawsNoise ? try noise.draw() : nil
      let x0 = try sampler.step(&x, prediction: answer, noise: draw, constraint: constraint)
      for level in x.indices {
        written += [("x0_\(step)_\(level)", x0[level]), ("x_\(step)_\(level)", x[level])]
      }
    }
    var pictures = try zip(x, given.signals).map { state, signal in
      try Tensor(
        shape: state.shape, values: state.values.map { min(max($0 * Float(signal), -1), 1) })
    }
    constraint?.finish(&pictures)
    if given.isPlain == true {
      written += pictures.enumerated().map { ("picture_\($0)", $1) }
    }
    try write(TensorFile.contents(written), to: out)
  }

  /// The posterior mean of a pixel, as noise or as v.
  private static func predict(_ x: Tensor, _ alphaBar: Double, _ given: Case) throws -> Tensor {
    if given.isPlain == true {
      return try Tensor(shape: x.shape, values: x.values.map { $0 * 0.25 })
    }
    let (alpha, sigma) = (alphaBar.squareRoot(), (1 - alphaBar).squareRoot())
    let variance = alphaBar * given.spread * given.spread + sigma * sigma
    let gain = alpha * given.spread * given.spread / variance
    let values = x.values.map { value -> Float in
      let seen = Double(value)
      let mean = given.mean * tanh(alpha * given.mean * seen / variance)
      let clean = mean + gain * (seen - alpha * mean)
      switch given.prediction {
      case .eps: return Float((seen - alpha * clean) / sigma)
      case .v: return Float((alpha * seen - clean) / sigma)
      }
    }
    return try Tensor(shape: x.shape, values: values)
  }
}
