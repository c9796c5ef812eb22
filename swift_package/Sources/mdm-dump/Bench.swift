import DiffusionCore
import Foundation

/// Times some work repeatedly and prints the seconds as a JSON list, without one warm-up.
enum Bench {
  static func run(_ arguments: inout Arguments) throws {
    let what = try arguments.next("what")
    let times = Int(try arguments.number("repetitions"))
    switch what {
    case "normals":
      let count = Int(try arguments.number("count"))
      var twister = MersenneTwister(key: [7, 0])
      try measure(times) { _ = twister.floatNormals(count) }
    case "tokens":
      let tokenizer = try UnigramTokenizer(model: read(arguments.next("model")))
      let texts = try Texts.given()
      var total = 0
      try measure(times) { for text in texts { total &+= tokenizer.ids(text).count } }
      FileHandle.standardError.write(Data("\(total)\n".utf8))
    case "steps": try steps(times, &arguments)
    default: throw MatryoshkaError.invalidArgument(name: "what", reason: "\(what) is unknown")
    }
  }

  /// Guidance and all steps of a sampler on pictures of one level, without the network.
  private static func steps(_ times: Int, _ arguments: inout Arguments) throws {
    let side = Int(try arguments.number("side"))
    let kind = SamplerKind(rawValue: try arguments.next("sampler")) ?? .ddim
    let threshold = Manifest.Threshold(rawValue: try arguments.next("threshold")) ?? .clip
    let file = try TensorFile(url: URL(filePath: arguments.next("tables")))
    let table = try file.doubles("base")
    let schedule = try NoiseSchedule(base: table, tables: [table])
    let settings = SamplerSettings(kind: kind, steps: 8)
    var twister = MersenneTwister(key: [1, 0])
    let drawn = try (0..<4).map { _ in
      try Tensor.picture(side: side, values: twister.floatNormals(3 * side * side))
    }
    try measure(times) {
      var sampler = try Sampler(
        schedule: schedule, settings: settings, prediction: .v, threshold: threshold,
        imageScales: [1])
      var x = [drawn[0]]
      while !sampler.isFinished {
        var answer = drawn[1]
        Diffusion.guide(&answer.values, unconditional: drawn[2].values, scale: 4)
        _ = try sampler.step(&x, prediction: [answer], noise: [drawn[3]])
      }
    }
  }

  private static func measure(_ times: Int, _ work: () throws -> Void) throws {
    let clock = ContinuousClock()
    var seconds: [Double] = []
    for round in 0...times {
      let taken = try clock.measure(work).components
      if round > 0 { seconds.append(Double(taken.seconds) + Double(taken.attoseconds) * 1e-18) }
    }
    try Texts.put(seconds)
  }
}
