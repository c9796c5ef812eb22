extension Manifest {
  /// What a distilled model needs: indices that the tables have, and a table row for each of them.
  package func checkStudent() throws {
    func refuse(_ field: String, _ reason: String) -> MatryoshkaError {
      .invalidManifest(field: field, reason: reason)
    }
    guard let student else {
      guard sampler.kind != .student, guidance != .embedded else {
        throw refuse("student", "is missing, though the sampler or the guidance is that of one")
      }
      return
    }
    let falls = zip(student.starts, student.starts.dropFirst()).allSatisfy { $0 > $1 }
    guard falls, let first = student.starts.first, first <= numSteps else {
      throw refuse("student.starts", "must fall from at most \(numSteps)")
    }
    let landings = Set(student.starts.dropFirst() + [0])
    guard landings.isSubset(of: student.targets) else {
      throw refuse("student.targets", "lacks an index that it jumps to")
    }
    guard sampler.kind == .student, student.steps.contains(sampler.steps) else {
      throw refuse("sampler", "is none that the student takes")
    }
    guard (guidance == .embedded) == (text != nil), guidance != .cfg else {
      throw refuse("guidance", "is none that the student takes")
    }
    for level in levels {
      guard level.targetTime != nil, (level.guidance == nil) == student.weights.isEmpty else {
        throw refuse("levels", "lack a table of the student")
      }
    }
  }

  /// Refuses a walk that does not go with the model: steps, weight and prompts of a student are
  /// those that it learned, and no other model takes its sampler.
  package func check(_ request: PictureRequest) throws {
    func refuse(_ name: String, _ reason: String) -> MatryoshkaError {
      .invalidArgument(name: name, reason: reason)
    }
    let settings = request.sampler
    guard let student else {
      if settings.kind == .student {
        throw refuse("sampler", "student goes with a distilled model, and this one is not")
      }
      return
    }
    guard settings.kind == .student else {
      throw refuse("sampler", "this model is a student, which \(settings.kind) does not go with")
    }
    guard let steps = settings.steps, student.steps.contains(steps) else {
      let got = settings.steps.map(String.init) ?? "the whole table"
      throw refuse("steps", "this student takes \(listed(student.steps)), got \(got)")
    }
    guard request.negativePrompt.isEmpty else {
      throw refuse("negative", "a student takes no negative prompt")
    }
    _ = try student.row(ofWeight: settings.guidanceScale)
  }
}

extension Manifest.Student {
  /// The row of the guidance tables for a weight; nil where the student takes none, which is weight 1.
  package func row(ofWeight weight: Double) throws -> Int? {
    let known = weights.isEmpty ? [1] : weights
    let distances = known.map { abs($0 - weight) }
    guard let nearest = distances.min(), nearest <= 1e-6 else {
      throw MatryoshkaError.invalidArgument(
        name: "guidance", reason: "this student takes \(listed(known)), got \(weight)")
    }
    return weights.isEmpty ? nil : distances.firstIndex(of: nearest)
  }
}

extension SamplerSettings {
  /// The walk that a bundle proposes: of a student, its fewest steps and its least weight.
  public init(proposedBy manifest: Manifest) {
    self.init(
      kind: manifest.sampler.kind, steps: manifest.sampler.steps,
      guidanceScale: manifest.student?.weights.min() ?? 1)
  }
}

private func listed(_ numbers: [some LosslessStringConvertible]) -> String {
  numbers.map(\.description).joined(separator: ", ")
}
