import DiffusionCore
import Foundation

/// Tables and manifest of a ``SmallBundle``.
struct Recipe {
  let kind: SmallBundle.Kind
  /// The outer level's and the inner one's.
  let sides: [Int]
  let numSteps: Int
  let format: Manifest.Format
  let weightBits: Int

  /// The files of a package, which is no package that anything could run.
  func files(of name: String) -> [(String, Data)] {
    let path = "\(name)\(format.suffix)"
    guard format == .coreai else { return [("\(path)/model", Data([1]))] }
    let program = Array(name.utf8)
    let hex = Array(SHA256.hex(of: program))
    let hash = stride(from: 0, to: hex.count, by: 2).compactMap {
      UInt8(String(hex[$0..<$0 + 2]), radix: 16)
    }
    return [
      ("\(path)/main.mlirb", Data(program)), ("\(path)/main.hash", Data(hash)),
      ("\(path)/metadata.json", Data("{}".utf8)),
    ]
  }

  /// Names of the packages on disk.
  var paths: [String] {
    if kind == .functions { return ["denoiser"] }
    let ofSteps = ["down_\(sides[0])", "core_\(sides[1])", "up_\(sides[0])"]
    return readsText ? ["encoder", "pooler"] + ofSteps : ofSteps
  }

  var readsText: Bool { kind == .text || nullPrompt != nil }

  /// Of a bundle that pads to the longest caption; nil of the others.
  private var nullPrompt: Manifest.NullPrompt? {
    if case .padded(let nullPrompt) = kind { nullPrompt } else { nil }
  }

  private var tokens: Int { nullPrompt == nil ? 4 : 8 }

  /// A unigram model with a piece for each of the letters a to f.
  static let tokenizer = tokenizer(["▁", "a", "b", "c", "d", "e", "f"])

  /// A unigram model with these pieces, all equally likely.
  static func tokenizer(_ pieces: [String]) -> [UInt8] {
    func piece(_ text: String, _ kind: UInt8) -> [UInt8] {
      let field = [0x0A, UInt8(text.utf8.count)] + Array(text.utf8) + [0x15, 0, 0, 0, 0, 0x18, kind]
      return [0x0A, UInt8(field.count)] + field
    }
    let special = piece("<pad>", 3) + piece("</s>", 3) + piece("<unk>", 2)
    return special + pieces.flatMap { piece($0, 1) }
  }

  func tables() throws -> Data {
    var members: [JSON.Member] = []
    var data = Data()
    func add(_ name: String, _ type: String, _ shape: [Int], _ bytes: [UInt8]) {
      let begin = data.count
      data.append(contentsOf: bytes)
      members.append(
        JSON.Member(
          name,
          .object([
            JSON.Member("dtype", .string(type)),
            JSON.Member("shape", .array(shape.map { .number(String($0)) })),
            JSON.Member("data_offsets", .array([begin, data.count].map { .number(String($0)) })),
          ])))
    }
    let noise = (0...numSteps).map { pow(0.001, Double($0) / Double(numSteps)) }.flatMap { value in
      (0..<8).map { UInt8(truncatingIfNeeded: value.bitPattern >> UInt64(8 * $0)) }
    }
    add("alpha_bar", "F64", [numSteps + 1], noise)
    for side in sides {
      add("alpha_bar_\(side)", "F64", [numSteps + 1], noise)
      add("time_\(side)", "F32", [numSteps, 2], rows(numSteps))
      if kind == .student {
        add("target_time_\(side)", "F32", [5, 2], rows(5))
        add("guidance_\(side)", "F32", [2, 2], rows(2))
      }
    }
    let header = Array(JSON.object(members).canonical.utf8)
    var file = withUnsafeBytes(of: UInt64(header.count).littleEndian) { Data($0) }
    file.append(contentsOf: header)
    return file + data
  }

  private func rows(_ count: Int) -> [UInt8] {
    littleEndianBytes(of: (0..<2 * count).map { Float($0) / Float(2 * count) })
  }

  func manifest(_ files: [(String, Data)]) -> String {
    let listed = files.map { path, data in
      #"{"path":"\#(path)","size":\#(data.count),"sha256":"\#(SHA256.hex(of: [UInt8](data)))"}"#
    }
    let isStudent = kind == .student
    let student = #"{"starts":[20,15,10,5],"targets":[20,15,10,5,0],"weights":[1.0,2.0]}"#
    return #"""
      {"schema":\#(nullPrompt == nil && format == .coreml && kind != .clips ? 1 : 2),"digest":"\#(String(repeating: "0", count: 64))",
      "layout":"\#(kind == .functions ? "multifunction" : "nested")","variant":"fp16",
      "target":"\#(format == .coreml ? "iOS18" : "iOS27")","levels":[\#(level(0)),\#(level(1))],"num_steps":\#(numSteps),
      "alpha_bar":"alpha_bar","tables":"tables.safetensors","config":"config.json","prediction":"v",
      "threshold":"clip","guidance":"\#(readsText ? "cfg" : "none")",
      "sampler":{"kind":"\#(isStudent ? "student" : "ddim")","steps":\#(isStudent ? 1 : 5),
      "minimum_steps":1,"maximum_steps":\#(isStudent ? 4 : numSteps)},
      "student":\#(isStudent ? student : "null"),"text":\#(text),
      "packages":[\#(packages.joined(separator: ","))],
      "peak_memory":{"resident":3000,"staged":2000,"minimal":1000},
      "golden":{"path":"golden.safetensors","prompts":[""],"text":null,"seed":0,"sampler":"ddim",
      "steps":1,"times":[1]},
      "provenance":{"license":"CC0","source":"tests","base_model":null,"notes":null},
      "versions":{},"created":null\#(format == .coreml ? "" : #","format":"coreai""#)\#(clips),"files":[\#(listed.joined(separator: ","))]}
      """#
  }

  private var clips: String {
    kind == .clips ? #","video":{"frames":[4,1],"fps":8,"key_frame":0}"# : ""
  }

  private var text: String {
    guard readsText else { return "null" }
    let padding = nullPrompt == nil ? "" : #","padding":"longest""#
    let null = nullPrompt == .space ? #","null_prompt":"space""# : ""
    return #"""
      {"max_tokens":\#(tokens),"width":2,"lowercase":true,"encoder":"encoder","tokenizer":"tokenizer.model",
      "source":"tests","tokenizer_sha256":"\#(SHA256.hex(of: Recipe.tokenizer))"\#(padding)\#(null)}
      """#
  }

  private func level(_ index: Int) -> String {
    let side = sides[index]
    let features = index == 1 && kind != .functions ? "\"features_\(side)\"" : "null"
    let (target, guidance) =
      kind == .student ? ("\"target_time_\(side)\"", "\"guidance_\(side)\"") : ("null", "null")
    return #"""
      {"side":\#(side),"image":"x_\#(side)","temb":"temb_\#(side)",
      "prediction":"prediction_\#(side)","features":\#(features),"alpha_bar":"alpha_bar_\#(side)",
      "time":"time_\#(side)","target_time":\#(target),"guidance":\#(guidance),"image_scale":1.0}
      """#
  }

  private var packages: [String] {
    let (outer, inner) = (sides[0], sides[1])
    let noisy = [picture("x", outer), feature("temb_\(outer)", [1, 2])]
    let noisyInside = [picture("x", inner), feature("temb_\(inner)", [1, 2])]
    let answers = [outer, inner].map { picture("prediction", $0) }
    let between = picture("features", inner)
    let hidden = picture("hidden", inner)
    if kind == .functions {
      return [
        package("stop_\(inner)", inner, noisyInside, [answers[1]], path: paths[0]),
        package("stop_\(outer)", outer, noisy + noisyInside, answers, path: paths[0]),
      ]
    }
    let steps = [
      package("down_\(outer)", outer, noisy, [between]),
      package("core_\(inner)", inner, noisyInside + [between], [answers[1], hidden]),
      package("up_\(outer)", outer, [noisy[0], hidden], [answers[0]]),
    ]
    guard readsText else { return steps }
    let (ids, mask) = (feature("token_ids", [1, tokens], "int32"), feature("text_mask", [1, tokens]))
    let features = feature("text_features", [1, tokens, 2])
    let seen = nullPrompt == nil ? [] : [feature("text_seen", [1, tokens])]
    return [
      package("encoder", nil, [ids, mask], [features], phase: "text"),
      package("pooler", nil, [features, mask] + seen, [feature("pooled", [1, 2])], phase: "prompt"),
    ] + steps
  }

  private func picture(_ name: String, _ side: Int) -> String {
    feature("\(name)_\(side)", [1, 3, side, side])
  }

  private func feature(_ name: String, _ shape: [Int], _ dtype: String = "fp16") -> String {
    #"{"name":"\#(name)","dtype":"\#(dtype)","shape":\#(shape)}"#
  }

  private func package(
    _ name: String, _ side: Int?, _ inputs: [String], _ outputs: [String], path: String? = nil,
    phase: String = "step"
  ) -> String {
    #"""
    {"name":"\#(name)","path":"\#(path ?? name)\#(format.suffix)","phase":"\#(phase)",
    "side":\#(side.map(String.init) ?? "null"),
    "precision":"fp16","weight_bits":\#(weightBits),"compute":"all","bytes":1,"activation_bytes":1,
    "inputs":[\#(inputs.joined(separator: ","))],"outputs":[\#(outputs.joined(separator: ","))]}
    """#
  }
}
