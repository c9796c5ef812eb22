extension Manifest {
  /// Checks that the tables have every index a distilled model needs, and a row for each.
  package func checkStudent() throws {
    func refuse(_ field: String, _ reason: String) -> MatryoshkaError {
      .invalidManifest(field: field, reason: reason)
    }
    guard let student else {
      guard sampler.kind != .student, guidance != .embedded else {
        throw refuse("student", "is missing, but the sampler or the guidance needs one")
      }
      return
    }
    let falls = zip(student.starts, student.starts.dropFirst()).allSatisfy { $0 > $1 }
    guard falls, let first = student.starts.first, first <= numSteps else {
      throw refuse("student.starts", "must decrease from at most \(numSteps)")
    }
    let landings = Set(student.starts.dropFirst() + [0])
    guard landings.isSubset(of: student.targets) else {
      throw refuse("student.targets", "lacks a table index that the student jumps to")
    }
    guard sampler.kind == .student, student.steps.contains(sampler.steps) else {
      throw refuse("sampler", "does not fit the student")
    }
    guard (guidance == .embedded) == (text != nil), guidance != .cfg else {
      throw refuse("guidance", "does not fit the student")
    }
    for level in levels {
      guard level.targetTime != nil, (level.guidance == nil) == student.weights.isEmpty else {
        throw refuse("levels", "lack a table that the student needs")
      }
    }
  }

  /// Refuses a request that does not fit the model. A student takes only the steps, weights and
  /// prompts that it learned, and no other model takes the sampler `student`.
  package func check(_ request: PictureRequest) throws {
    func refuse(_ name: String, _ reason: String) -> MatryoshkaError {
      .invalidArgument(name: name, reason: reason)
    }
    let settings = request.sampler
    guard let student else {
      if settings.kind == .student {
        throw refuse("sampler", "student goes with a distilled model, and this model is not one")
      }
      return
    }
    guard settings.kind == .student else {
      throw refuse("sampler", "this model is a student and takes no \(settings.kind); use student")
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
  /// The row of a weight in the guidance tables; nil if the student takes no weight other than 1.
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
  /// The settings that a bundle proposes. A student gets its fewest steps and its smallest weight.
  public init(proposedBy manifest: Manifest) {
    self.init(
      kind: manifest.sampler.kind, steps: manifest.sampler.steps,
      guidanceScale: manifest.student?.weights.min() ?? 1)
  }
}

private func listed(_ numbers: [some LosslessStringConvertible]) -> String {
  numbers.map(\.description).joined(separator: ", ")
}
