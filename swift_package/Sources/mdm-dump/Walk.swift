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
  }

  static func run(_ path: String, tables: String, out: String) throws {
    let given = try JSONDecoder().decode(Case.self, from: Data(contentsOf: URL(filePath: path)))
    let file = try TensorFile(url: URL(filePath: tables))
    let schedule = try NoiseSchedule(
      base: file.doubles("base"),
      tables: given.sides.indices.map { try file.doubles("level_\($0)") })
    var sampler = try Sampler(
      schedule: schedule, settings: given.settings, prediction: given.prediction,
      threshold: given.threshold, imageScales: given.signals, starts: given.starts)
    var noise = NoiseStream(seed: given.seed, sides: given.sides)
    var x = try noise.draw()
    var written: [(name: String, tensor: Tensor)] = []
    while !sampler.isFinished {
      let step = sampler.stepsDone
      let answer = try x.enumerated().map { level, state in
        try predict(state, schedule.tables[level][sampler.index], given)
      }
      let draw = given.settings.drawsNoise ? try noise.draw() : nil
      let x0 = try sampler.step(&x, prediction: answer, noise: draw)
      for level in x.indices {
        written += [("x0_\(step)_\(level)", x0[level]), ("x_\(step)_\(level)", x[level])]
      }
    }
    try write(TensorFile.contents(written), to: out)
  }

  /// The posterior mean of a pixel, as noise or as v.
  private static func predict(_ x: Tensor, _ alphaBar: Double, _ given: Case) throws -> Tensor {
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
