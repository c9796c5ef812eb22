import Foundation
import MatryoshkaDiffusion

/// The parsed command line. Throws ``MatryoshkaError/invalidArgument(name:reason:)``.
struct CommandLineOptions {
  var bundle = ""
  var request = PictureRequest(prompt: "")
  var stopAt: AskedLevel?
  var seeds: [UInt32] = []
  var out: String?
  var raw: String?
  var previews: String?
  var features: String?
  var snapshot: String?
  var snapshotAfter: Int?
  var resume: String?
  var server = ["mdm"]
  var precision = "fp16"
  /// nil: that of this system and bundle.
  var runtime: RuntimeChoice?
  var computeUnits: Manifest.ComputeUnits?
  var compiled: String?
  var memory = MemoryPolicy.automatic
  var repetitions = 10
  var isJSON = false
  var overwrites = false
  var isQuiet = false

  static let usage = """
    Usage: mdm-generate [generate|bench] BUNDLE --prompt TEXT --out FILE.png [options]
           mdm-generate licenses BUNDLE          whose work the model is
           mdm-generate check BUNDLE             one prediction against the golden record
           mdm-generate compile BUNDLE --out DIR compile packages for an app; on a Mac
           mdm-generate devices BUNDLE           where Core ML plans to run each operation; on a Mac

    A bundle of clips makes an animated PNG. The file holds what makes it again: mdm sample --like FILE.

      --prompt TEXT        what to show            --negative TEXT      what not to show
      --seed N             default 0; give several, and --out is a folder
      --steps N            default 50              --full-table         every step of the table
      --sampler NAME       ddim, ddpm, dpmpp, or student for a distilled model
      --eta X              noise for ddim
      --guidance X         1 turns it off          --threshold NAME     none, clip, dynamic, dynamic_if
      --grid NAME          even, log_snr
      --stop-at LEVEL      run only up to this side, such as 32, or of clips such as 16x32
      --previews DIR       every level at every step, as PNG; of clips animated
      --raw FILE           the picture before rounding, as safetensors; of a clip all frames in one
      --features FILE      text features made by mdm embed
      --memory NAME        automatic, resident, staged, minimal
      --snapshot FILE --snapshot-after N    stop soon after N steps; --resume FILE continues
      --runtime NAME       coreml, coreai (default on a Mac: the one that the bundle is for)
                           or pipe (default elsewhere; mdm serve-bundle)
      --server COMMAND     default mdm             --precision NAME     fp16, fp32
      --compute-units NAME all, cpuOnly, cpuAndGPU, cpuAndNeuralEngine; default: the bundle's
      --compiled DIR       output of compile; default: compile once and keep it in the caches
      --repetitions N      for bench; default 10
      --json --quiet --overwrite --help

    Examples:
      mdm-generate emoji.bundle --prompt "red heart" --seed 7 --out heart.png
      mdm-generate motion.bundle --prompt "rocket moving up" --out clip.png
      mdm-generate bench emoji.bundle --prompt "red heart" --steps 4 --json
    """

  init(_ words: [String]) throws {
    var rest = words[...]
    while let word = rest.popFirst() {
      guard word.hasPrefix("--") else {
        guard bundle.isEmpty else { throw refuse(word, "is unexpected") }
        bundle = word
        continue
      }
      if try !flag(word) { try set(word, rest.popFirst()) }
    }
    if bundle.isEmpty { throw refuse("bundle", "name the folder of a bundle") }
    if seeds.isEmpty { seeds = [0] }
  }

  private func refuse(_ name: String, _ reason: String) -> MatryoshkaError {
    .invalidArgument(name: name, reason: reason)
  }

  private mutating func flag(_ word: String) throws -> Bool {
    switch word {
    case "--json": isJSON = true
    case "--quiet": isQuiet = true
    case "--overwrite": overwrites = true
    case "--full-table": request.sampler.steps = nil
    default: return false
    }
    return true
  }

  private mutating func set(_ word: String, _ given: String?) throws {
    guard let given else { throw refuse(word, "needs a value, or is unknown") }
    switch word {
    case "--prompt": request.prompt = given
    case "--negative": request.negativePrompt = given
    case "--seed": seeds.append(try number(word, given))
    case "--steps": request.sampler.steps = try number(word, given)
    case "--sampler": request.sampler.kind = try choice(word, given)
    case "--eta": request.sampler.eta = try number(word, given)
    case "--guidance": request.sampler.guidanceScale = try number(word, given)
    case "--threshold": request.sampler.threshold = try choice(word, given)
    case "--grid": request.sampler.grid = try choice(word, given)
    case "--stop-at":
      guard let level = AskedLevel(given) else {
        throw refuse(word, "expected a side, or frames x side such as 16x32, got \"\(given)\"")
      }
      stopAt = level
    case "--out": out = given
    case "--raw": raw = given
    case "--previews": previews = given
    case "--features": features = given
    case "--memory": memory = try choice(word, given)
    case "--snapshot": snapshot = given
    case "--snapshot-after": snapshotAfter = try number(word, given)
    case "--resume": resume = given
    case "--server": server = given.split(separator: " ").map(String.init)
    case "--precision": precision = given
    case "--runtime": runtime = try choice(word, given)
    case "--compute-units": computeUnits = try choice(word, given)
    case "--compiled": compiled = given
    case "--repetitions": repetitions = max(1, try number(word, given))
    default: throw refuse(word, "is unknown; see --help")
    }
  }

  private func number<Number: LosslessStringConvertible>(
    _ word: String, _ given: String
  ) throws -> Number {
    guard let number = Number(given) else {
      throw refuse(word, "expected a number in range, got \"\(given)\"")
    }
    return number
  }

  private func choice<Choice: RawRepresentable & CaseIterable>(
    _ word: String, _ given: String
  ) throws -> Choice where Choice.RawValue == String {
    guard let choice = Choice(rawValue: given) else {
      let known = Choice.allCases.map(\.rawValue).joined(separator: ", ")
      throw refuse(word, "expected one of \(known), got \"\(given)\"")
    }
    return choice
  }
}
